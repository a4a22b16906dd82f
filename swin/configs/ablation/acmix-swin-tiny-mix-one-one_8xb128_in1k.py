# The paper's Table 6: 1, 1.
_base_ = "../acmix-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(mix="one_one"))
