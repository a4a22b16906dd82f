# The paper's Table 6: alpha, 1 - alpha.
_base_ = "../acmix-resnet50_8xb32_in1k.py"

model = dict(backbone=dict(mix="alpha_complement"))
