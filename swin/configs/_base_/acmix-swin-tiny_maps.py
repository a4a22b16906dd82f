# The backbone for detection and segmentation, and what has no weight decay: vectors, so norms,
# alpha and beta, and the position tables.
maps_backbone = dict(
    type="ACmixSwinTransformer",
    arch="tiny",
    drop_path_rate=0.2,
    out_indices=(0, 1, 2, 3),
)
no_decay = dict(
    norm_decay_mult=0.0,
    flat_decay_mult=0.0,
    custom_keys={"relative_position_bias_table": dict(decay_mult=0.0)},
)
custom_imports = dict(imports=["acmix_swin"])
