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
