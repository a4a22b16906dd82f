_base_ = [
    "../_base_/acmix-pvt-tiny_maps.py",
    "../../../core/configs/_base_/retinanet_1x_coco.py",
]

model = dict(
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=1e-4))
