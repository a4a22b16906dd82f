# Images and COCO annotations of your own, 12 epochs on one GPU:
#   data_root/train/*.jpg  data_root/annotations/train.json
#   data_root/val/*.jpg    data_root/annotations/val.json
# A config of yours names the classes and the model.
_base_ = [
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "./coco_runtime.py",
]

data_root = "data/own"
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/train.json",
        data_prefix=dict(img="train/"),
        filter_cfg=dict(min_size=0),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "/annotations/val.json")
test_evaluator = val_evaluator
