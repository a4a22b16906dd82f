"""The export command of every project."""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import acmix
from acmix.errors import InputError
from acmix.mm.admission import admit_weights, class_names
from acmix.mm.explain import input_errors_explained
from acmix.mm.exporting import Check, Exported, write_checked
from acmix.mm.formats import FORMATS, OPSET, ending_of
from acmix.mm.parsers import export_parser
from acmix.mm.read import read_anywhere
from acmix.mm.settings import read_config
from acmix.mm.sources import datasets
from acmix.mm.weights import load_weights

# Where sizes are open, these are compared beside the one that is asked for, or larger ones if a
# file has guards; one is odd.
_OTHERS = ((192, 256), (97, 61))
_BATCHES = (1, 3)
# Of the example then: more than one pixel after all strides.
_LEAST = (96, 128)


@input_errors_explained()
def export(project: Path, argv: Sequence[str] | None = None) -> list[Check]:
    """Run ``tools/export.py`` of a project.

    Args:
        project: Folder of the project, where configs are looked for besides the working directory.
        argv: Arguments; those of the process if ``None``.

    Returns:
        How the file was compared with the model.
    """
    args = export_parser().parse_args(argv)
    out = Path(args.out)
    _check_out(out)
    cfg = read_config(project, args)
    size = _size(args.size, cfg)
    if args.batch < 1:
        raise InputError(f"--batch {args.batch}: give a positive number")
    network, classes = load_model(cfg, args.checkpoint)
    model = Exported(network)
    guarded = FORMATS[ending_of(out)].guarded
    shapes = _shapes(args.batch, size, args.dynamic, guarded)
    checks = write_checked(
        model,
        out,
        [(batch, 3, *size) for batch, size in shapes],
        dynamic=args.dynamic,
        metadata=describe(model, cfg, size, classes, args),
        dtype=torch.float16 if args.half else torch.float32,
    )
    _print(out, checks)
    return checks


def _check_out(out: Path) -> None:
    """Check what can be known of the file before there is work to lose.

    Raises:
        InputError: It can't be written, or nothing that is installed writes or runs it.
    """
    FORMATS[ending_of(out)].require()
    if out.is_dir():
        raise InputError(f"{out}: it is a folder; give the name of a file")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it, or give another file")
    if not os.access(out.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{out}: folder {out.absolute().parent} can't be written to; give a file in another"
        )


def _shapes(
    batch: int, size: tuple[int, int], dynamic: bool, guarded: bool
) -> list[tuple[int, tuple[int, int]]]:
    """Batch and size of the example, and of what else is compared."""
    if not dynamic:
        return [(batch, size)]
    # torch.export takes a batch of one, and a map of one pixel, for the only ones there are.
    height, width = (max(side, least) for side, least in zip(size, _LEAST, strict=True))
    others = ((height + 32, width + 64), (height + 1, width + 5)) if guarded else _OTHERS
    sizes = dict.fromkeys((size, *others))
    return [(max(batch, 2), (height, width)), *product(_BATCHES, sizes)]


def load_model(cfg: Config, checkpoint: str) -> tuple[nn.Module, tuple[str, ...] | None]:
    """The model of a config with the weights of a checkpoint, and the names of its classes.

    Raises:
        CheckpointError: The file is no checkpoint, hides code, or is not of this model.
    """
    init_default_scope(cfg.get("default_scope", "mmpretrain"))
    content = read_anywhere(checkpoint)
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
    model = MODELS.build(cfg.model)
    weights = admit_weights(content, checkpoint)["state_dict"]
    load_weights(model, weights, checkpoint, complete=True)
    return model, class_names(content)


def describe(
    model: Exported,
    cfg: Config,
    size: tuple[int, int],
    classes: tuple[str, ...] | None,
    args: Any,
) -> dict[str, Any]:
    """What a user of the file has to know, as JSON values."""
    mean, std = model.normalisation()
    return {
        "config": Path(args.config).stem,
        "classes": None if classes is None else list(classes),
        "mean": mean,
        "std": std,
        "channels": "RGB" if _to_rgb(cfg) else "as read",
        "input": "images (B, 3, H, W): (pixel of 0 to 255 - mean) / std",
        "size": list(size),
        "dynamic": args.dynamic,
        "versions": {"acmix": acmix.__version__, "torch": torch.__version__},
    }


def _to_rgb(cfg: Config) -> bool:
    steps = cfg.model.get("data_preprocessor") or {}
    return bool(steps.get("to_rgb") or steps.get("bgr_to_rgb"))


def _size(given: list[int] | None, cfg: Config) -> tuple[int, int]:
    """Height and width of the images.

    Raises:
        InputError: Those given are none, or none are given and the config has none.
    """
    if given is None:
        return _size_of(cfg)
    if len(given) > 2 or min(given) < 1:
        text = " ".join(map(str, given))
        raise InputError(f"--size {text}: give height and width, or one number for both")
    return given[0], given[-1]


def _size_of(cfg: Config) -> tuple[int, int]:
    """The size to which the test pipeline brings images, if it is one."""
    found = None
    steps = (
        step for _, data in datasets(cfg, ("test_dataloader",)) for step in data.get("pipeline", ())
    )
    for step in steps:
        value = step.get("crop_size") or step.get("scale")
        # MMEngine has width before height.
        if isinstance(value, int):
            found = (value, value)
        elif isinstance(value, tuple | list) and not step.get("keep_ratio"):
            found = (value[1], value[0])
    if found is None:
        raise InputError("--size is missing: the config's test images are of different sizes")
    return found


def _print(out: Path, checks: list[Check]) -> None:
    size = out.stat().st_size / 2**20
    opset = f", opset {OPSET}" if out.suffix == ".onnx" else ""
    print(f"wrote {out} ({size:.1f} MiB{opset})")
    for check in checks:
        shape = "×".join(map(str, check.shape))
        print(f"  images {shape}: largest difference {check.error:.1e}")
