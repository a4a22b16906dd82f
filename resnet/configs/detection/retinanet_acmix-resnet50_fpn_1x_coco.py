_base_ = "../../../core/configs/_base_/retinanet_1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ACmixResNet",
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
    ),
)
custom_imports = dict(imports=["acmix_resnet"])
