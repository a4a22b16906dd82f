# Swin's recipe on COCO: 36 epochs, the multi-scale crops of DETR.
_base_ = [
    "./acmix-swin-tiny_maps.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "../../../core/configs/_base_/coco_runtime.py",
]

resize = dict(
    type="RandomChoiceResize",
    scales=[(side, 1333) for side in range(480, 801, 32)],
    keep_ratio=True,
)
resize_before_crop = dict(resize, scales=[(400, 1333), (500, 1333), (600, 1333)])
crop = dict(
    type="RandomCrop",
    crop_type="absolute_range",
    crop_size=(384, 600),
    allow_negative_crop=True,
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoice", transforms=[[resize], [resize_before_crop, crop, resize]]),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=_base_.no_decay,
)
