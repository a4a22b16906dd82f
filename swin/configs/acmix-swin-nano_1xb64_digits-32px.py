# The embedded default: trains on two CPU cores in about one minute.
_base_ = ["./_base_/acmix-swin-tiny.py", "../../core/configs/_base_/digits.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ACmixSwinTransformer",
        arch=dict(embed_dims=64, depths=[2, 2], num_heads=[4, 8]),
        img_size=32,
        window_size=4,
        drop_path_rate=0.1,
        out_indices=(1,),
    ),
    head=dict(num_classes=10, in_channels=128),
    train_cfg=None,
)
