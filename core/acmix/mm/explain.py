"""Errors of the libraries below, in one line that says what a user can do."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acmix.errors import InputError
from acmix.mm.classes import NAME_CATEGORIES

# What only the full mmcv and the packages on top of it bring.
_DOWNSTREAM = re.compile(r"\b(mmdet|mmseg(mentation)?|mmcv[./](ops|_ext)|pycocotools|ftfy)\b")


@contextmanager
def input_errors_explained() -> Iterator[None]:
    """End the process with one short message and exit code 2 on errors that a user can mend."""
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def explain(error: Exception) -> str | None:
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
        return undecodable(images[-1])
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
    # Of MMSegmentation's data sets, which say it of all their classes.
    if found := re.search(r"new classes (\(.*?\)|\[.*?\]) is not a\s+subset of classes", text):
        return (
            f"metainfo.classes={found[1]}: a data set of given classes, such as ADE20KDataset, "
            "takes some of its own and no others; for yours give the data sets "
            "type=BaseSegDataset, as configs/segmentation/*_own-masks.py of swin/ and pvt/ do"
        )
    if "end should be larger than begin" in text:
        return "param_scheduler: begins after train_cfg.max_epochs; shorten the warm-up with it"
    return None


def unwritable(path: Path, error: OSError) -> InputError:
    """What to say of a checkpoint that can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, remedy = "no space left to save the checkpoint", "free some"
    else:
        reason = f"the checkpoint can't be saved ({error.strerror or error})"
        remedy = "mend that"
    return InputError(
        f"{path}: {reason}; {remedy}, or choose another --work-dir, and go on with --resume"
    )


def undecodable(path: str, error: Exception | None = None) -> str:
    """What to say of an image file that can't be read."""
    if isinstance(error, FileNotFoundError):
        return f"file {path} not found; check data_root and the annotation file"
    reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return f"image {path} can't be decoded{reason}; repair it or remove it from the data"
