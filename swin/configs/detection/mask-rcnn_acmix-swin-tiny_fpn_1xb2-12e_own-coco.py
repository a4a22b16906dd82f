# Objects of your own, with boxes and masks: copy this file, name your categories here, and give the
# folder with --cfg-options data_root=FOLDER.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/acmix-swin-tiny_maps.py",
    "../../../core/configs/_base_/own_coco.py",
]

classes = ("square", "disc")

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes), pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
test_dataloader = val_dataloader
val_evaluator = dict(metric=["bbox", "segm"])
test_evaluator = val_evaluator

model = dict(
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)),
        mask_head=dict(num_classes=len(classes)),
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-5, weight_decay=0.05),
    paramwise_cfg=_base_.no_decay,
)
