# Objects of your own, with boxes: copy this file, name your categories here, and give the folder
# with --cfg-options data_root=FOLDER.
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "../_base_/acmix-pvt-tiny_maps.py",
    "../../../core/configs/_base_/own_coco.py",
]

classes = ("square", "disc")

train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
val_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
test_dataloader = val_dataloader

model = dict(
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[64, 128, 320, 512]),
    bbox_head=dict(num_classes=len(classes)),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=5e-5, weight_decay=1e-4))
