"""What the flags, the data and the machine change in a config."""

import argparse
import os
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict

from acmix.errors import InputError
from acmix.mm.image_folder import class_folders
from acmix.mm.projects import config_files
from acmix.mm.sources import LOADERS, datasets, image_folder
from acmix.suggest import did_you_mean

_TTA_MODELS = {
    "mmpretrain": dict(type="mmpretrain.AverageClsScoreTTA"),
    "mmdet": dict(
        type="DetTTAModel",
        tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
}


def read_config(project: Path, args: argparse.Namespace) -> Config:
    """The config that the flags name, with the settings that they override.

    Raises:
        InputError: There is no such config, or it is no Python.
    """
    path = _find_config(project, Path(args.config))
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise InputError(f"config {path}: line {error.lineno}: {error.msg}") from error
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    return cfg


def load_config(project: Path, args: argparse.Namespace) -> Config:
    """The config with the settings that training and testing share; errors of ``read_config``."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = read_config(project, args)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", Path(args.config).stem))
    set_loader_defaults(cfg, args)
    apply_data_root(cfg)
    return cfg


def apply_train_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Validation, mixed precision, resuming and the learning rate.

    Raises:
        InputError: The learning rate is to be scaled, and the config has no batch size for it.
    """
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise InputError(
                "--auto-scale-lr: the config does not say which batch size its learning rate is "
                "for; add --cfg-options auto_scale_lr.base_batch_size=..."
            )
        cfg.auto_scale_lr.enable = True


def apply_test_flags(cfg: Config, args: argparse.Namespace) -> None:
    """The checkpoint, mixed precision, pictures and flips."""
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        _draw_predictions(cfg, args)
    if args.tta:
        _add_flip_augmentation(cfg)


def set_loader_defaults(cfg: Config, args: argparse.Namespace) -> None:
    """MMPretrain's defaults for loaders; a config's own settings win over them."""
    for name in LOADERS:
        loader = cfg.get(name)
        if loader is None:
            continue
        workers = loader.get("num_workers", 0) > 0
        loader.setdefault("pin_memory", torch.cuda.is_available())
        loader.persistent_workers = loader.get("persistent_workers", True) and workers
        if _scope(cfg) == "mmpretrain":
            loader.setdefault("collate_fn", ConfigDict(type="default_collate"))
        if args.no_pin_memory:
            loader.pin_memory = False
        if getattr(args, "no_persistent_workers", False):
            loader.persistent_workers = False


def apply_data_root(cfg: Config) -> None:
    """Give the top-level ``data_root`` of a config to each of its data sets.

    An evaluator with an annotation file takes that of its data set.
    """
    root = cfg.get("data_root")
    for name, dataset in datasets(cfg):
        if root is not None:
            dataset["data_root"] = str(root)
        evaluators = cfg.get(name.replace("dataloader", "evaluator")) or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if "ann_file" in evaluator:
                evaluator.ann_file = str(Path(dataset.get("data_root") or "", dataset["ann_file"]))


def fill_class_count(cfg: Config) -> None:
    """Set a head's open ``num_classes=None`` to the number of class folders of the training set.

    Raises:
        InputError: The training folder has no class folders.
    """
    head = cfg.model.get("head")
    if head is None or head.get("num_classes", 0) is not None:
        return
    folder = image_folder(next(datasets(cfg, ("train_dataloader",)))[1])
    count = len(class_folders(folder))
    head.num_classes = count
    cfg.data_preprocessor.num_classes = count


def _find_config(project: Path, path: Path) -> Path:
    """A file, from here or from the project's folder, or the project's config of this name."""
    for candidate in (path, project / path):
        if candidate.is_file():
            return candidate
    named = {file.name: project / file for file in config_files(project)}
    name = f"{path.name.removesuffix('.py')}.py"
    if name in named and path.parent == Path():
        return named[name]
    hint = did_you_mean(name, named) or f"; there are {', '.join(named)}"
    raise InputError(f"config {path} not found{hint}")


def _scope(cfg: Config) -> str:
    """The library whose models and hooks the config names."""
    return cfg.get("default_scope", "mmpretrain")


def _draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Switch the drawing hook on, under the names that each library has for it."""
    hook = cfg.default_hooks.visualization
    hook.update(show=args.show, wait_time=args.wait_time, interval=args.interval)
    hook["enable" if _scope(cfg) == "mmpretrain" else "draw"] = True
    if args.show_dir is None:
        return
    folder = str(Path(args.show_dir).absolute())
    if _scope(cfg) == "mmseg":
        cfg.visualizer.save_dir = folder
    else:
        hook["test_out_dir" if _scope(cfg) == "mmdet" else "out_dir"] = folder


def _add_flip_augmentation(cfg: Config) -> None:
    if "mask_head" in cfg.model.get("roi_head", {}):
        raise InputError("--tta: masks of flipped images can't be merged; leave it out here")
    if "tta_model" not in cfg:
        cfg.tta_model = _TTA_MODELS[_scope(cfg)]
    if "tta_pipeline" not in cfg:
        *steps, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
        if "meta_keys" in pack:
            pack.meta_keys = (*pack.meta_keys, "flip", "flip_direction")
        flips = [dict(type="RandomFlip", prob=prob) for prob in (1.0, 0.0)]
        cfg.tta_pipeline = [*steps, dict(type="TestTimeAug", transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
