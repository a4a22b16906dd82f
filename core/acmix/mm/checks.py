"""Checks of data and settings that run before any work is lost."""

import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn
from torch.utils.data import Dataset

from acmix.errors import InputError
from acmix.suggest import did_you_mean

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
NAME_CATEGORIES = "give the names of its categories as metainfo.classes of the data set"
# A region proposal network tells objects from background, whatever the classes.
_HEAD = re.compile(r"(^|\.)(?!rpn_)\w*head(\.\d+)?$")


def apply_data_root(cfg: Config) -> None:
    """Give the top-level ``data_root`` of a config to each of its data sets.

    An evaluator with an annotation file takes that of its data set.
    """
    root = cfg.get("data_root")
    for name, dataset in _datasets(cfg):
        if root is not None:
            dataset.data_root = str(root)
        evaluators = cfg.get(name.replace("dataloader", "evaluator")) or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if "ann_file" in evaluator:
                evaluator.ann_file = str(Path(dataset.get("data_root") or "", dataset.ann_file))


def check_data_folders(cfg: Config, loaders: tuple[str, ...] = _LOADERS) -> None:
    """Raise ``InputError`` for the first data folder or annotation file that is not there."""
    for name, dataset in _datasets(cfg, loaders):
        for kind, path in _needed(dataset):
            if not path.exists():
                raise InputError(
                    f"{name}: {kind} {path} not found{_near(path)}; give the folder that holds "
                    f"{_tops(cfg)} with --cfg-options data_root=..."
                )


def fill_class_count(cfg: Config) -> None:
    """Set a head's open ``num_classes=None`` to the number of class folders of the training set.

    Raises:
        InputError: The training folder has no class folders.
    """
    head = cfg.model.get("head")
    if head is None or head.get("num_classes", 0) is not None:
        return
    folder = _image_folder(next(_datasets(cfg, ("train_dataloader",)))[1])
    count = sum(entry.is_dir() for entry in folder.iterdir())
    if count == 0:
        raise InputError(f"{folder}: has no class folders; put the images of each class into one")
    head.num_classes = count
    cfg.data_preprocessor.num_classes = count


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Refuses data whose classes are not those of the model's heads."""

    def before_train(self, runner) -> None:
        """Check the training and validation data."""
        _check_classes(runner.model, runner.train_dataloader.dataset, "training")
        if runner.val_loop is not None:
            _check_classes(runner.model, runner.val_dataloader.dataset, "validation")

    def before_test(self, runner) -> None:
        """Check the test data."""
        _check_classes(runner.model, runner.test_dataloader.dataset, "test")


def _check_classes(model: nn.Module, dataset: Dataset, role: str) -> None:
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes and not hasattr(dataset, "get_gt_labels"):
        return
    found = len(classes) if classes else int(max(dataset.get_gt_labels())) + 1
    for name, head in getattr(model, "module", model).named_modules():
        expected = getattr(head, "num_classes", None)
        if expected is None or not _HEAD.search(name):
            continue
        if found != expected if classes else found > expected:
            raise InputError(
                f"model.{name}.num_classes={expected}: the {role} data have {found} classes; "
                f"set model.{name}.num_classes={found} with --cfg-options or give other data"
            )
    # COCO's reader passes over objects of all other categories.
    known = getattr(dataset, "cat_ids", classes)
    if classes and len(known) != len(classes):
        raise InputError(
            f"{dataset.ann_file}: names {len(known)} of the {len(classes)} classes of the {role} "
            f"data; {NAME_CATEGORIES}"
        )


def _datasets(cfg: Config, loaders: tuple[str, ...] = _LOADERS) -> Iterator[tuple[str, dict]]:
    for name in loaders:
        dataset = (cfg.get(name) or {}).get("dataset")
        while dataset is not None and "dataset" in dataset:
            dataset = dataset["dataset"]
        if dataset is not None:
            yield name, dataset


def _image_folder(dataset: dict) -> Path:
    return next(path for kind, path in _needed(dataset) if kind == "data folder")


def _needed(dataset: dict) -> list[tuple[str, Path]]:
    """Kind and path of what a data set reads, as far as it is in a local folder."""
    root = dataset.get("data_root")
    if not root or "://" in root:
        return []
    return [(kind, Path(root).expanduser() / part) for kind, part in _parts(dataset)]


def _parts(dataset: dict) -> list[tuple[str, str]]:
    """Kind and path below ``data_root`` of what a data set reads."""
    prefix = dataset.get("data_prefix") or dataset.get("split") or ""
    folders = prefix.values() if isinstance(prefix, dict) else [prefix]
    parts = [("data folder", folder) for folder in folders]
    if dataset.get("ann_file"):
        parts.append(("annotation file", dataset["ann_file"]))
    return parts


def _tops(cfg: Config) -> str:
    """The folders that a data root is known by: ``train/ and val/``."""
    parts = [part for _, dataset in _datasets(cfg) for _, part in _parts(dataset)]
    *most, last = dict.fromkeys(f"{Path(part).parts[0]}/" for part in parts if part) or ["the data"]
    return f"{', '.join(most)} and {last}" if most else last


def _near(path: Path) -> str:
    """The first part of the path that is missing, and a near miss beside it."""
    while not path.parent.is_dir() and path != path.parent:
        path = path.parent
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)
