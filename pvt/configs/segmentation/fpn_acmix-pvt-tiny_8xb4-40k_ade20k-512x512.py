_base_ = [
    "../_base_/acmix-pvt-tiny_maps.py",
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/schedules/schedule_40k.py",
    "../../../core/configs/_base_/ade20k_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4),
)
param_scheduler = [
    dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(save_best="mIoU", rule="greater", max_keep_ckpts=3))
