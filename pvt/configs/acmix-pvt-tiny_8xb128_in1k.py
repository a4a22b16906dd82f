# PVT's recipe. RandAugment replaces its colour jitter of 0.4, as timm applies one or the other.
_base_ = [
    "./_base_/acmix-pvt-tiny.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "../../core/configs/_base_/default_runtime.py",
]

train_dataloader = dict(
    batch_size=128,
    sampler=dict(_delete_=True, type="RepeatAugSampler", num_repeats=3, shuffle=True),
)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True, flat_decay_mult=0.0, custom_keys={".cls_token": dict(decay_mult=0.0)}
    ),
)
# By epoch, as PVT's; the cosine is that of epochs 0 to 300, and takes over where it begins.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=6),
    dict(type="WholeCosineLR", eta_min_ratio=0.01, by_epoch=True, begin=5),
]
