# The paper's Table 7: tensor shifts.
_base_ = "../acmix-resnet50_8xb32_in1k.py"

model = dict(backbone=dict(shift="tensor"))
