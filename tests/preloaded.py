"""What the process of which forks are made imports: others' packages, and what these read.

Ours are not among them: a command or a snippet has to import what it needs of them itself.
"""

import gc
from contextlib import suppress
from importlib import import_module

from mmengine.config import Config

import metafiles

# The name of a config of a library that has metafiles, where that is installed.
_CONFIGS = {
    "mmpretrain": "resnet/resnet50_8xb32_in1k.py",
    "mmdet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "mmseg": "sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
}
_PACKAGES = (
    *("mmpretrain.datasets", "mmpretrain.evaluation", "mmpretrain.models", "mmpretrain.engine"),
    *("mmpretrain.visualization", "sklearn.datasets", "torch.utils.tensorboard"),
    *("mmdet.apis", "mmseg.apis"),
)

for name in _PACKAGES:
    with suppress(ImportError):
        import_module(name)
metafiles.read_once()
for library, name in _CONFIGS.items():
    with suppress(ImportError):
        Config._get_cfg_path(f"{library}::{name}", "")
gc.collect()
gc.freeze()  # so that a fork's collections of garbage are short, and copy no pages
