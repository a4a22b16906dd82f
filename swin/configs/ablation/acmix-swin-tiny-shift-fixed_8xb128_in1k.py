# The paper's Table 7: fixed kernels.
_base_ = "../acmix-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(shift="fixed"))
