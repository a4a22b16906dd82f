"""The training and testing commands of every project: MMPretrain's flags, plain error messages.

They serve classifiers, MMDetection's detectors and MMSegmentation's segmentors; what differs is
looked up by the config's ``default_scope``.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.evaluator import DumpResults

from acmix.errors import InputError
from acmix.mm.checks import (
    NAME_CATEGORIES,
    apply_data_root,
    check_data_folders,
    fill_class_count,
)
from acmix.mm.runner import ACmixRunner
from acmix.suggest import did_you_mean

# How the score that chooses the best checkpoint is printed.
_SCORES = {
    "accuracy/top1": "top-1 {:.2f} %",
    "coco/bbox_mAP": "box mAP {:.3f}",
    "mIoU": "mIoU {:.2f} %",
}
_TTA_MODELS = {
    "mmpretrain": dict(type="mmpretrain.AverageClsScoreTTA"),
    "mmdet": dict(
        type="DetTTAModel",
        tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
}
# What only the full mmcv and the packages on top of it bring.
_DOWNSTREAM = re.compile(r"\b(mmdet|mmseg(mentation)?|mmcv[./](ops|_ext)|pycocotools|ftfy)\b")


def train(project: Path, argv: Sequence[str] | None = None) -> None:
    """Run ``tools/train.py`` of a project.

    Args:
        project: Folder of the project, where configs are looked for besides the working directory.
        argv: Arguments; those of the process if ``None``.
    """
    _report_input_errors(lambda: _train(project, argv))


def test(project: Path, argv: Sequence[str] | None = None) -> None:  # noqa: PT028
    """Run ``tools/test.py`` of a project; arguments as for ``train``."""
    _report_input_errors(lambda: _test(project, argv))


class MergeOptions(DictAction):
    """``--cfg-options`` that may be given more than once."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Add these options to the earlier ones."""
        earlier = getattr(namespace, self.dest) or {}
        super().__call__(parser, namespace, values, option_string)
        setattr(namespace, self.dest, {**earlier, **getattr(namespace, self.dest)})


def _train(project: Path, argv: Sequence[str] | None) -> None:
    args = _train_parser().parse_args(argv)
    cfg = _load_config(project, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        if not torch.cuda.is_available():
            raise InputError("--amp: mixed precision training needs a GPU; leave it out here")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    _set_loader_defaults(cfg, args)
    _check_start(cfg)
    runner = _build_runner(cfg, ("train_dataloader", "val_dataloader"))
    runner.train()
    _print_result(runner)


def _test(project: Path, argv: Sequence[str] | None) -> None:
    args = _test_parser().parse_args(argv)
    _check_out(args)
    cfg = _load_config(project, args)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        _draw_predictions(cfg, args)
    if args.tta:
        _add_flip_augmentation(cfg)
    _set_loader_defaults(cfg, args)
    runner = _build_runner(cfg, ("test_dataloader",))
    if args.out and args.out_item != "metrics":
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out_item == "metrics":
        mmengine.dump(metrics, args.out)


def _shared_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=MergeOptions,
        help="settings that override the config's, e.g. data_root=/data/imagenet "
        "train_dataloader.batch_size=32; may be given more than once",
    )
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--no-pin-memory", action="store_true", help="don't pin host memory")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run were started",
    )
    # torch.distributed.launch passes one spelling or the other, by version.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser


def _train_parser() -> argparse.ArgumentParser:
    parser = _shared_parser("Train a model")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or without a path from the last one of the work dir",
    )
    parser.add_argument("--no-validate", action="store_true", help="don't validate in training")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch size of this run",
    )
    parser.add_argument(
        "--no-persistent-workers", action="store_true", help="start loader workers each epoch"
    )
    return parser


def _test_parser() -> argparse.ArgumentParser:
    parser = _shared_parser("Test a model")
    parser.add_argument("checkpoint", help="checkpoint file: own, released or plain")
    parser.add_argument("--out", help="file for predictions (.pkl) or metrics (.json, .pkl)")
    parser.add_argument("--out-item", choices=["metrics", "pred"], help="what --out holds")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="folder for pictures of predictions")
    parser.add_argument("--interval", type=int, default=1, help="show every n-th sample")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds a window stays")
    parser.add_argument(
        "--tta", action="store_true", help="average over horizontal flips, or the config's variants"
    )
    return parser


def _load_config(project: Path, args: argparse.Namespace) -> Config:
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    path = _find_config(project, Path(args.config))
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise InputError(f"config {path}: line {error.lineno}: {error.msg}") from error
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", path.stem))
    return cfg


def _scope(cfg: Config) -> str:
    """The library whose models and hooks the config names."""
    return cfg.get("default_scope", "mmpretrain")


def _find_config(project: Path, path: Path) -> Path:
    for candidate in (path, project / path):
        if candidate.is_file():
            return candidate
    known = sorted(p.relative_to(project) for p in project.glob("configs/**/*.py"))
    known = [str(p) for p in known if "_base_" not in p.parts]
    names = {Path(name).name: name for name in known}
    hint = did_you_mean(path.name, names) or f"; there are {', '.join(known)}"
    raise InputError(f"config {path} not found{hint}")


def _build_runner(cfg: Config, loaders: tuple[str, ...]) -> ACmixRunner:
    apply_data_root(cfg)
    check_data_folders(cfg, loaders)
    fill_class_count(cfg)
    _check_checkpoint(cfg)
    return ACmixRunner.from_cfg(cfg)


def _check_start(cfg: Config) -> None:
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


def _check_checkpoint(cfg: Config) -> None:
    path = cfg.get("load_from")
    if path and not re.match(r"\w+://", path) and not Path(path).is_file():
        folder = Path(path).parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise InputError(f"checkpoint {path} not found{did_you_mean(Path(path).name, names)}")


def _check_out(args: argparse.Namespace) -> None:
    if args.out is None and args.out_item is not None:
        raise InputError(f"--out-item={args.out_item}: give the file to write with --out")
    if args.out is None:
        return
    endings = (".json", ".pkl", ".pickle") if args.out_item == "metrics" else (".pkl", ".pickle")
    if not args.out.endswith(endings):
        raise InputError(f"--out={args.out}: give a name that ends in {' or '.join(endings)}")
    if not Path(args.out).absolute().parent.is_dir():
        raise InputError(f"--out={args.out}: its folder does not exist; create it first")


def _set_loader_defaults(cfg: Config, args: argparse.Namespace) -> None:
    """MMPretrain's defaults for loaders; a config's own settings win over them."""
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
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


def _print_result(runner: ACmixRunner) -> None:
    """The last and the best score and where its weights are, for a person at the terminal."""
    hub, best = runner.message_hub, runner.message_hub.runtime_info.get("best_ckpt")
    for score, text in _SCORES.items():
        if runner.rank == 0 and best and f"val/{score}" in hub.log_scalars:
            last = hub.get_scalar(f"val/{score}").current()
            print(f"{text.format(last)} at the end")
            print(f"best {text.format(hub.get_info('best_score'))}, weights in {best}")


def _report_input_errors(step: Callable[[], None]) -> None:
    """Run a step; end with one short message and exit code 2 on errors that a user can mend."""
    try:
        step()
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def _explain(error: Exception) -> str | None:
    """What a user can do about this error; ``None`` if it looks like one of ours."""
    text = str(error)
    # Errors of a loader's worker process come with its traceback; ours is the last line of it.
    worker = re.search(r"^\S*InputError: (.*)", text, re.MULTILINE | re.DOTALL)
    if isinstance(error, InputError):
        return worker[1].strip() if worker else text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left to write {error.filename or 'a file'}; free some and run again"
    images = re.findall(r"failed to load image: ([^{\n]+)", text)
    if images:
        return f"image {images[-1]} can't be decoded; repair it or remove it from the data"
    missing = re.search(r"No such file or directory: '(.+?)'", text)
    if missing:
        return f"file {missing[1]} not found; check data_root and the annotation file"
    if isinstance(error, ImportError) and (absent := _DOWNSTREAM.search(text)):
        return (
            f"{absent[0]} can't be imported, which detection and segmentation need; "
            "run 'make mmcv' in the repository's root"
        )
    if isinstance(error, ImportError) and "custom modules" in text:
        return f"{text}; install the project with 'make install', or 'pip install -e' its folder"
    if "need at least one array to concatenate" in text:  # MMEngine's packing of no image
        return f"no image with an object of the configured classes is left; {NAME_CATEGORIES}"
    if "end should be larger than begin" in text:
        return "param_scheduler: begins after train_cfg.max_epochs; shorten the warm-up with it"
    return None
