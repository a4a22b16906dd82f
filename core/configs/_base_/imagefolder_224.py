# A folder of images of your own: data_root/train/<class>/*.jpg and data_root/val/<class>/*.jpg.
# The number of classes is that of the class folders; MMPretrain's API has that of the checkpoint.
_base_ = "mmpretrain::_base_/datasets/imagenet_bs32.py"

data_root = "data/images"
data_preprocessor = dict(num_classes=None)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ImageFolder",
        data_root=data_root,
        data_prefix="train",
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ImageFolder",
        data_root=data_root,
        data_prefix="val",
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
