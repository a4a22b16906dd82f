# The paper's 100 epochs of batch 256; all else is the authors' code.
_base_ = [
    "./_base_/acmix-resnet50.py",
    "../../core/configs/_base_/imagenet_bs32_pillow.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_coslr.py",
    "../../core/configs/_base_/default_runtime.py",
]

# 0.1 spread over the 999 other classes, where this loss spreads over all 1,000.
model = dict(head=dict(loss=dict(label_smooth_val=0.1 * 1000 / 999)))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.25, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=5, convert_to_iter_based=True),
]
