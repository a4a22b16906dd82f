_base_ = "./acmix-pvt-tiny_8xb128_in1k.py"

model = dict(backbone=dict(arch="small"))
