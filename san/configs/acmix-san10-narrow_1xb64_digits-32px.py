# The embedded default: trains on two CPU cores in about two minutes.
_base_ = ["./_base_/acmix-san10.py", "../../core/configs/_base_/digits.py"]

model = dict(
    backbone=dict(
        widths=(64, 64, 128, 128, 128),
        kernels=(3, 3, 3, 3, 3),
        stem_channels=16,
    ),
    head=dict(num_classes=10, in_channels=128, topk=(1,)),
)
