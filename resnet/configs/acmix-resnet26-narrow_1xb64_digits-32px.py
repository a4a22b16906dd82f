# The embedded default: trains on two CPU cores in about two minutes.
_base_ = ["./_base_/acmix-resnet50.py", "../../core/configs/_base_/digits.py"]

model = dict(
    backbone=dict(depth=26, stem_channels=32, base_channels=16),
    head=dict(num_classes=10, in_channels=512, topk=(1,)),
)
