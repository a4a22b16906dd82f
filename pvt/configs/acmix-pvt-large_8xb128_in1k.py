# PVT's recipe for this size; the paper has no ACmix of it.
_base_ = "./acmix-pvt-tiny_8xb128_in1k.py"

model = dict(backbone=dict(arch="large", drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
