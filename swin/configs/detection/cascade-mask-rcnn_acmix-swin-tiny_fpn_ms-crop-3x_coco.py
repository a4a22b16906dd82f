# Swin's Cascade Mask R-CNN: heads of four convolutions and one linear layer, GIoU loss.
_base_ = [
    "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
    "../_base_/coco_instance_ms-crop-3x.py",
]

bbox_heads = [
    dict(
        type="ConvFCBBoxHead",
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[std, std, 2 * std, 2 * std],
        ),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
    )
    for std in (0.1, 0.05, 0.033)
]
model = dict(
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(bbox_head=bbox_heads),
)
