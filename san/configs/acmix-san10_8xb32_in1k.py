# SAN's recipe: its cosine goes by epoch, without a warm-up.
_base_ = [
    "./_base_/acmix-san10.py",
    "../../core/configs/_base_/imagenet_bs32_pillow.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_coslr.py",
    "../../core/configs/_base_/default_runtime.py",
]

# 0.1 spread over the 999 other classes, where this loss spreads over all 1,000.
model = dict(head=dict(loss=dict(label_smooth_val=0.1 * 1000 / 999)))
