# The embedded default: trains on two CPU cores in about two minutes.
_base_ = [
    "./_base_/acmix-san10.py",
    "../../core/configs/_base_/digits.py",
    "../../core/configs/_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        widths=(32, 32, 64, 128, 128),
        kernels=(3, 3, 3, 3, 3),
        stem_channels=16,
    ),
    head=dict(num_classes=10, in_channels=128, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=2,
        end=25,
        T_max=23,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=25)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
