"""A folder of images in a folder for each class, and which of its files are no images."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import mmcv
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.utils import ProgressBar
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from acmix.errors import InputError
from acmix.mm.sources import datasets, image_folder

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@DATASETS.register_module()
class ImageFolder(CustomDataset):
    """Images in ``data_prefix/<class>/``, at any depth; files and folders with a dot are no data.

    Args:
        skip: Paths below ``data_prefix`` that are left out.
        **kwargs: Further arguments of MMPretrain's ``CustomDataset``.

    Raises:
        InputError: There are no class folders, or no images in them.
    """

    def __init__(self, *, skip: tuple[str, ...] = (), **kwargs) -> None:
        self._skip = frozenset(skip)
        super().__init__(**{"extensions": ENDINGS, **kwargs})

    def _find_samples(self) -> list[tuple[str, int]]:
        folder, classes = Path(self.img_prefix), class_folders(Path(self.img_prefix))
        if self.CLASSES is None:
            self._metainfo["classes"] = classes
        elif len(self.CLASSES) != len(classes):
            raise InputError(
                f"{folder}: has {len(classes)} class folders, but {len(self.CLASSES)} classes are "
                "named in metainfo.classes of the data set; name one for each folder"
            )
        samples = [
            (path, label)
            for label, name in enumerate(classes)
            for path in image_files(folder, name)
            if path not in self._skip
        ]
        if not samples:
            raise InputError(f"{folder}: has no images; those end in {', '.join(ENDINGS)}")
        empty = set(range(len(classes))) - {label for _, label in samples}
        if empty:
            names = ", ".join(classes[label] for label in sorted(empty))
            MMLogger.get_current_instance().warning(f"{folder}: no images of {names}")
        return samples


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the classes, in order.

    Raises:
        InputError: There are none.
    """
    classes = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not classes:
        raise InputError(f"{folder}: has no class folders; put the images of each class into one")
    return tuple(classes)


def image_files(folder: Path, name: str) -> Iterator[str]:
    """Paths of a class's images below the folder, in order; links are followed, but not twice."""
    seen = set()
    for parent, folders, files in os.walk(folder / name, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for file in sorted(files):
            if file.lower().endswith(ENDINGS) and not file.startswith("."):
                yield str(Path(parent, file).relative_to(folder))


def check_images(cfg: Config, loaders: tuple[str, ...], *, skip: bool) -> None:
    """Open every image of the image folders before anything else is done.

    Args:
        cfg: A config; with ``skip``, its data sets leave the bad images out from then on.
        loaders: Whose data sets are checked.
        skip: Whether to go on without the bad ones.

    Raises:
        InputError: Some can't be decoded: all of them are named.
    """
    named = [(n, d) for n, d in datasets(cfg, loaders) if d["type"].endswith("ImageFolder")]
    if not named:
        raise InputError("--check-images: opens images of an ImageFolder; this is another data set")
    bad: dict[str, str] = {}
    for name, dataset in named:
        folder = image_folder(dataset)
        paths = [path for entry in class_folders(folder) for path in image_files(folder, entry)]
        print(f"{name}: opening {len(paths)} images of {folder}")
        reasons = _reasons_against(folder, paths)
        dataset["skip"] = tuple(reasons)
        bad.update({str(folder / path): reason for path, reason in reasons.items()})
    if not bad:
        return
    lines = "".join(f"\n  {path}: {reason}" for path, reason in bad.items())
    if not skip:
        raise InputError(
            f"{len(bad)} images can't be decoded; repair or remove them, or go on without them "
            f"with --skip-bad-images:{lines}"
        )
    print(f"going on without {len(bad)} images that can't be decoded:{lines}")


def _reasons_against(folder: Path, paths: list[str]) -> dict[str, str]:
    """Images that can't be decoded, and why."""
    progress = ProgressBar(len(paths))
    reasons = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: reason_against(folder / path), paths)
        for path, reason in zip(paths, found, strict=True):
            progress.update()
            if reason is not None:
                reasons[path] = reason
    print()
    return reasons


def reason_against(path: Path) -> str | None:
    """Why a file can't be decoded, or ``None`` if it can."""
    try:
        content = path.read_bytes()
        if not content:
            return "is empty"
        return None if mmcv.imfrombytes(content) is not None else "is no image, or a damaged one"
    except OSError as error:
        return error.strerror or str(error)
    except cv2.error as error:
        return "has too many pixels" if "PIXELS" in str(error) else "is damaged"
