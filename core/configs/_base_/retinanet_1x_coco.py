# RetinaNet, 12 epochs, batch 16 on 8 GPUs; a project brings the backbone.
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "./coco_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=0.01))
