"""The analysis command of every project: what the layers of a trained model do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor, nn

from acmix.analysis import Analysis, analyze, read_curves, write_report
from acmix.analysis.curves import log_files
from acmix.analysis.summary import QUERIES
from acmix.errors import InputError
from acmix.mm.checks import check_data_folders
from acmix.mm.explain import input_errors_explained
from acmix.mm.export import load_model
from acmix.mm.image_folder import reason_against
from acmix.mm.parsers import analyze_parser
from acmix.mm.predict import find_device, find_images, make_folder
from acmix.mm.predicting import image_pipeline
from acmix.mm.settings import apply_data_root, read_config
from acmix.mm.sources import datasets

# Images that are shown at most, and how many are taken from the test set: for the maps and, besides
# those, for the receptive field.
_MOST, _SHOWN, _TAKEN = 16, 2, 8

# An image as the test pipeline gives it, by its name.
Inputs = list[tuple[str, dict[str, Any]]]


@input_errors_explained()
def analyze_model(project: Path, argv: Sequence[str] | None = None) -> Analysis:
    """Run ``tools/analyze.py`` of a project.

    Args:
        project: Folder of the project, where configs are looked for besides the working directory.
        argv: Arguments; those of the process if ``None``.

    Returns:
        What was found; it has been written too.
    """
    args = analyze_parser().parse_args(argv)
    queries = [_query(text) for text in args.query] if args.query else QUERIES
    paths = list(find_images(args.image)) if args.image else []
    _check_images(paths)
    device, out = find_device(args.device), Path(args.out)
    make_folder("--out", out)
    cfg = read_config(project, args)
    model, _ = load_model(cfg, args.checkpoint)
    inputs = read_images(cfg, paths) if paths else _test_images(cfg)
    shown = len(paths) or _SHOWN
    run = Path(args.checkpoint).parent
    found = analyze_images(
        model.to(device),
        inputs,
        shown,
        queries=queries,
        layers=args.layers,
        curves=read_curves(run) if log_files(run) else None,
    )
    name = Path(args.config).stem
    files = write_report(
        found, out, f"What {name} learned", [f"Weights: {Path(args.checkpoint).name}"]
    )
    print(f"wrote report.html and {len(files) - 1} files for it to {out}")
    return found


def analyze_images(model: nn.Module, inputs: Inputs, shown: int, **options: Any) -> Analysis:
    """Analyse the backbone of a classifier, detector or segmentor.

    Args:
        model: The model, which normalises images by itself.
        inputs: Images; smaller ones are filled up to the size of the largest.
        shown: How many of them are shown.
        **options: Further arguments of ``acmix.analysis.analyze``.
    """
    normalised = [_normalised(model, data) for _, data in inputs]
    height, width = (max(image.shape[axis] for image in normalised) for axis in (-2, -1))
    images = torch.cat([_filled(image, height, width) for image in normalised])
    pictures = [
        (name, _picture(_filled(data["inputs"], height, width))) for name, data in inputs[:shown]
    ]
    backbone = getattr(model, "backbone", model)
    return analyze(backbone, images, pictures, **options)


def read_images(cfg: Config, paths: Sequence[Path]) -> Inputs:
    """Image files as the config's test pipeline gives them."""
    pipeline = image_pipeline(cfg)
    return [(path.name, pipeline({"img_path": str(path), "img_id": 0})) for path in paths]


def _test_images(cfg: Config) -> Inputs:
    """The first images of the test set.

    Raises:
        InputError: It is not there.
    """
    apply_data_root(cfg)
    try:
        check_data_folders(cfg, ("test_dataloader",))
    except InputError as error:
        raise InputError(
            f"--image is missing, and so is the config's test set ({error}); give one of the two"
        ) from error
    (_, config), *_ = datasets(cfg, ("test_dataloader",))
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmpretrain")):
        dataset = DATASETS.build(config)
    count = min(len(dataset), _TAKEN)
    return [(f"test image {number}", dataset[number]) for number in range(count)]


def _check_images(paths: Sequence[Path]) -> None:
    if len(paths) > _MOST:
        raise InputError(f"--image: {len(paths)} images; give at most {_MOST}")
    for path in paths:
        if (reason := reason_against(path)) is not None:
            raise InputError(f"--image {path}: {reason}; give another")


def _query(text: str) -> tuple[float, float]:
    """Row and column, in shares of the image."""
    try:
        row, column = map(float, text.split(","))
    except ValueError as error:
        raise InputError(
            f"--query {text}: give row,column in shares of the image, such as 0.5,0.5"
        ) from error
    return row, column


def _normalised(model: Any, data: dict[str, Any]) -> Tensor:
    """(1, 3, H, W), as the backbone takes it."""
    images = model.data_preprocessor(pseudo_collate([data]), False)["inputs"]
    return images if isinstance(images, Tensor) else torch.stack(list(images))


def _picture(image: Tensor) -> np.ndarray:
    """(H, W, 3) in RGB, of an image as mmcv reads it, in BGR."""
    return image.flip(0).permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def _filled(image: Tensor, height: int, width: int) -> Tensor:
    """An image of this size, with zeros at the bottom and the right."""
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
