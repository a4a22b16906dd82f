# The backbone for detection and segmentation: every map, no class token.
maps_backbone = dict(
    type="ACmixPVT",
    arch="tiny",
    with_cls_token=False,
    out_type="featmap",
    out_indices=(0, 1, 2, 3),
)
custom_imports = dict(imports=["acmix_pvt"])
