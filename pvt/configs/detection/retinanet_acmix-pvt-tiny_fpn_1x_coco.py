_base_ = "../../../core/configs/_base_/retinanet_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ACmixPVT",
        arch="tiny",
        with_cls_token=False,
        out_type="featmap",
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=1e-4))
custom_imports = dict(imports=["acmix_pvt"])
