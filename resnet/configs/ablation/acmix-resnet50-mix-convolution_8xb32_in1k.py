# The paper's Table 6: convolution only.
_base_ = "../acmix-resnet50_8xb32_in1k.py"

model = dict(backbone=dict(mix="convolution"))
