_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "../_base_/coco_instance_ms-crop-3x.py"]

model = dict(
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
