# Swin's recipe. RandAugment replaces its colour jitter of 0.4, as timm applies one or the other.
_base_ = [
    "./_base_/acmix-swin-tiny.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "../../core/configs/_base_/default_runtime.py",
]

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
# No weight decay on vectors either: that is alpha and beta.
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
# The cosine is that of epochs 0 to 300, and the warm-up takes the place of its first 20.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type="WholeCosineLR",
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=20,
        convert_to_iter_based=True,
    ),
]
