# Masks of your own: copy this file, name the classes here in the order of their numbers, and give
# the folder with --cfg-options data_root=FOLDER.
_base_ = [
    "../_base_/acmix-swin-tiny_maps.py",
    "mmseg::_base_/models/upernet_swin.py",
    "../../../core/configs/_base_/own_masks.py",
]

classes = ("ground", "square", "disc")

train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
val_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))
test_dataloader = val_dataloader

# One GPU, so no statistics of several to bring together.
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, **_base_.maps_backbone),
    decode_head=dict(num_classes=len(classes), norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=len(classes), norm_cfg=norm_cfg),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.01),
    paramwise_cfg=_base_.no_decay,
)
