_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "../_base_/coco_instance_ms-crop-3x.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ACmixSwinTransformer",
        arch="tiny",
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
