"""Checks of data and settings that run before any work is lost."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import Dataset

from acmix.errors import InputError
from acmix.suggest import did_you_mean

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def apply_data_root(cfg: Config) -> None:
    """Give the top-level ``data_root`` of a config to each of its data sets."""
    root = cfg.get("data_root")
    for _, dataset in _datasets(cfg):
        if root is not None:
            dataset.data_root = str(root)


def check_data_folders(cfg: Config, loaders: tuple[str, ...] = _LOADERS) -> None:
    """Raise ``InputError`` for the first data folder of the config that is not there."""
    for name, dataset in _datasets(cfg, loaders):
        folder = _image_folder(dataset)
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"{name}: data folder {folder} not found{_near(folder)}; "
                "give the folder that holds train/ and val/ with --cfg-options data_root=..."
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
    """Refuses data whose classes are not those of the classification head."""

    def before_train(self, runner) -> None:
        """Check the training and validation data."""
        _check_classes(runner.model, runner.train_dataloader.dataset, "training")
        if runner.val_loop is not None:
            _check_classes(runner.model, runner.val_dataloader.dataset, "validation")

    def before_test(self, runner) -> None:
        """Check the test data."""
        _check_classes(runner.model, runner.test_dataloader.dataset, "test")


def _check_classes(model, dataset: Dataset, role: str) -> None:
    head = getattr(getattr(model, "module", model), "head", None)
    expected = getattr(head, "num_classes", None)
    metainfo = getattr(dataset, "metainfo", None) or {}
    if expected is None or not hasattr(dataset, "get_gt_labels"):
        return
    classes = metainfo.get("classes")
    found = len(classes) if classes else int(max(dataset.get_gt_labels())) + 1
    differs = found != expected if classes else found > expected
    if differs:
        raise InputError(
            f"model.head.num_classes={expected}: the {role} data have {found} classes; "
            f"set model.head.num_classes={found} with --cfg-options or give other data"
        )


def _datasets(cfg: Config, loaders: tuple[str, ...] = _LOADERS) -> Iterator[tuple[str, dict]]:
    for name in loaders:
        dataset = (cfg.get(name) or {}).get("dataset")
        while dataset is not None and "dataset" in dataset:
            dataset = dataset["dataset"]
        if dataset is not None:
            yield name, dataset


def _image_folder(dataset: dict) -> Path | None:
    root = dataset.get("data_root")
    if not root or "://" in root:
        return None
    prefix = dataset.get("data_prefix") or dataset.get("split") or ""
    if isinstance(prefix, dict):
        prefix = prefix.get("img_path", "")
    return Path(root).expanduser() / prefix


def _near(path: Path) -> str:
    """The first part of the path that is missing, and a near miss beside it."""
    while not path.parent.is_dir() and path != path.parent:
        path = path.parent
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)
