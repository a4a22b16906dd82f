_base_ = [
    "./_base_/acmix-san10.py",
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_coslr.py",
    "../../core/configs/_base_/default_runtime.py",
]
