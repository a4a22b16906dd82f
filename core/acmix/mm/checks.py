"""Checks of flags, settings and files that run before any work is lost; they change nothing."""

import argparse
import re
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config

from acmix.errors import InputError
from acmix.mm.read import is_address
from acmix.mm.sources import LOADERS, datasets, needed_paths, top_folders
from acmix.suggest import did_you_mean


def check_data_folders(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> None:
    """Raise ``InputError`` for the first data folder or annotation file that is not there."""
    for name, dataset in datasets(cfg, loaders):
        for kind, path in needed_paths(dataset):
            if not path.exists():
                raise InputError(
                    f"{name}: {kind} {path} not found{_near(path)}; give the folder that holds "
                    f"{top_folders(cfg)} with --cfg-options data_root=..."
                )


def check_device(cfg: Config) -> None:
    """Refuse what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    if str(cfg.optim_wrapper.get("type")).endswith("AmpOptimWrapper"):
        raise InputError(
            "optim_wrapper.type=AmpOptimWrapper: mixed precision training needs a GPU; leave "
            "--amp out, or set optim_wrapper.type=OptimWrapper"
        )
    if cfg.get("sync_bn") == "mmcv":
        raise InputError("sync_bn=mmcv: mmcv's layer needs a GPU; give sync_bn=torch")


def check_sync_bn(cfg: Config) -> None:
    """Refuse a name that no layer for synchronised batch statistics has."""
    if cfg.get("sync_bn") not in (None, "torch", "mmcv"):
        raise InputError(f"sync_bn={cfg.sync_bn}: choose from torch, mmcv")


def check_sharding(cfg: Config) -> None:
    """Refuse to spread a model or its optimiser over the processes.

    The first process checks and writes the whole checkpoint: it would have a part of it only, or
    wait for the others.
    """
    wrapper, optimizer = cfg.get("model_wrapper_cfg") or {}, cfg.optim_wrapper
    settings = {
        "strategy.type": (cfg.get("strategy") or {}).get("type"),
        "model_wrapper_cfg.type": wrapper.get("type"),
        "optim_wrapper.type": optimizer.get("type"),
        "optim_wrapper.optimizer.type": (optimizer.get("optimizer") or {}).get("type"),
    }
    for name, value in settings.items():
        if re.search("FullyShard|FSDP|ZeroRedundancy|DeepSpeed|ColossalAI", str(value)):
            raise InputError(
                f"{name}={value}: sharding a model or its optimiser is not supported, as "
                "checkpoints are written whole by one process; leave it out, and save memory with "
                "--amp, model.backbone.with_cp=True, or smaller batches and "
                "optim_wrapper.accumulative_counts"
            )


def check_work_dir(cfg: Config) -> None:
    """Raise ``InputError`` if the folder for logs and checkpoints can't be made or written."""
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.work_dir):
            pass
    except OSError as error:
        raise InputError(
            f"work_dir={cfg.work_dir}: can't be written ({error.strerror}); give another with "
            "--work-dir"
        ) from error


def check_start(cfg: Config) -> None:
    """Refuse to freeze random weights, which no training mends."""
    backbone = cfg.model.get("backbone", {})
    if cfg.get("load_from") or cfg.get("resume") or backbone.get("init_cfg"):
        return
    if backbone.get("frozen_stages", -1) >= 0 or backbone.get("norm_eval"):
        raise InputError(
            "load_from=None: the backbone has frozen stages or batch statistics, so it must start "
            "from an ImageNet checkpoint; give one with --cfg-options load_from=..., or train all "
            "of it with model.backbone.frozen_stages=-1 model.backbone.norm_eval=False"
        )


def check_checkpoint(cfg: Config) -> None:
    """Raise ``InputError`` for a checkpoint file that is not there."""
    path = cfg.get("load_from")
    if path and not is_address(path) and not Path(path).expanduser().is_file():
        folder = Path(path).parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise InputError(f"checkpoint {path} not found{did_you_mean(Path(path).name, names)}")


def check_out(args: argparse.Namespace) -> None:
    """Refuse an output file that could not be written after hours of testing."""
    if args.out is None and args.out_item is not None:
        raise InputError(f"--out-item={args.out_item}: give the file to write with --out")
    if args.out is None:
        return
    endings = (".json", ".pkl", ".pickle") if args.out_item == "metrics" else (".pkl", ".pickle")
    if not args.out.endswith(endings):
        raise InputError(f"--out={args.out}: give a name that ends in {' or '.join(endings)}")
    check_folder("--out", Path(args.out))


def check_folder(name: str, path: Path) -> None:
    """Refuse a file to write, given as the argument ``name``, whose folder is not there."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"{name}={path}: its folder does not exist; create it first")


def _near(path: Path) -> str:
    """The first part of the path that is missing, and a near miss beside it."""
    while not path.parent.is_dir() and path != path.parent:
        path = path.parent
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)
