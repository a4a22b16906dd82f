"""The data sets that a config names, and the folders and files that they read."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def datasets(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> Iterator[tuple[str, dict]]:
    """The innermost data set of each loader that the config has, with the loader's name."""
    for name in loaders:
        dataset = (cfg.get(name) or {}).get("dataset")
        while dataset is not None and "dataset" in dataset:
            dataset = dataset["dataset"]
        if dataset is not None:
            yield name, dataset


def needed_paths(dataset: dict) -> list[tuple[str, Path]]:
    """Kind and path of what a data set reads, as far as it is in a local folder."""
    root = dataset.get("data_root")
    if not root or "://" in root:
        return []
    return [(kind, Path(root).expanduser() / part) for kind, part in _parts(dataset)]


def image_folder(dataset: dict) -> Path:
    """The folder of a data set's images."""
    return next(path for kind, path in needed_paths(dataset) if kind == "data folder")


def top_folders(cfg: Config) -> str:
    """The folders that a data root is known by: ``train/ and val/``."""
    parts = [part for _, dataset in datasets(cfg) for _, part in _parts(dataset)]
    *most, last = dict.fromkeys(f"{Path(part).parts[0]}/" for part in parts if part) or ["the data"]
    return f"{', '.join(most)} and {last}" if most else last


def _parts(dataset: dict) -> list[tuple[str, str]]:
    """Kind and path below ``data_root`` of what a data set reads."""
    prefix = dataset.get("data_prefix") or dataset.get("split") or ""
    folders = prefix.values() if isinstance(prefix, dict) else [prefix]
    parts = [("data folder", folder) for folder in folders]
    if dataset.get("ann_file"):
        parts.append(("annotation file", dataset["ann_file"]))
    return parts
