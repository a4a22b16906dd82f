# Masks of your own: copy this file, name the classes here in the order of their numbers, and give
# the folder with --cfg-options data_root=FOLDER.
_base_ = [
    "../_base_/acmix-pvt-tiny_maps.py",
    "mmseg::_base_/models/fpn_r50.py",
    "../../../core/configs/_base_/own_masks.py",
]

classes = ("ground", "square", "disc")

train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
val_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    neck=dict(in_channels=[64, 128, 320, 512]),
    # One GPU, so no statistics of several to bring together.
    decode_head=dict(num_classes=len(classes), norm_cfg=dict(type="BN", requires_grad=True)),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
)
