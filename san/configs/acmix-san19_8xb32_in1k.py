_base_ = "./acmix-san10_8xb32_in1k.py"

model = dict(backbone=dict(depth=19))
