# The paper's Table 7: learnable kernels from a random start.
_base_ = "../acmix-resnet50_8xb32_in1k.py"

model = dict(backbone=dict(shift="random"))
