# The paper's Table 6: alpha, 1.
_base_ = "../acmix-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(mix="alpha_one"))
