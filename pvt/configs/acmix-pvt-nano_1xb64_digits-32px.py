# The embedded default: trains on two CPU cores in less than two minutes.
_base_ = ["./_base_/acmix-pvt-tiny.py", "../../core/configs/_base_/digits.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ACmixPVT",
        arch=dict(
            embed_dims=[64, 128],
            depths=[2, 2],
            num_heads=[2, 4],
            mlp_ratios=[4, 4],
            sr_ratios=[2, 1],
        ),
        img_size=32,
        drop_path_rate=0.1,
    ),
    head=dict(num_classes=10, in_channels=128),
    train_cfg=None,
)
# Attention without a built-in neighbourhood needs more epochs of the few images.
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=2,
        end=40,
        T_max=38,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=40)
