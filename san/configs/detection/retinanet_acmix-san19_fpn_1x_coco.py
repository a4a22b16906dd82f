_base_ = "../../../core/configs/_base_/retinanet_1x_coco.py"

# Maps of the strides 4 to 32, with the widths of a ResNet-50; frozen as deep as one.
model = dict(
    backbone=dict(
        _delete_=True,
        type="ACmixSAN",
        depth=19,
        out_indices=(1, 2, 3, 4),
        frozen_stages=1,
        norm_eval=True,
    ),
)
custom_imports = dict(imports=["acmix_san"])
