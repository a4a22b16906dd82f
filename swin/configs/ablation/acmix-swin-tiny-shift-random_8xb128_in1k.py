# The paper's Table 7: learnable kernels from a random start.
_base_ = "../acmix-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(shift="random"))
