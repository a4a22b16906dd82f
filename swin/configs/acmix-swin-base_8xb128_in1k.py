# Swin's recipe for this size; the paper has no ACmix of it.
_base_ = "./acmix-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(arch="base", drop_path_rate=0.5), head=dict(in_channels=1024))
