"""One way for checkpoints to come in, wherever they are and whoever asks for them."""

import re
from collections.abc import Callable

import torch
from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader

from acmix.checkpoint import read_checkpoint
from acmix.errors import CheckpointError

_SCHEME = re.compile(r"(\w[\w+.-]*)://")
# What MMEngine's storage backends fetch as a file.
_FETCHED = ("http", "https", "s3", "petrel")


def read_anywhere(source: str, map_location: str | torch.device | Callable | None = "cpu") -> dict:
    """Read a checkpoint of a file or an address as plain data, without executing anything in it.

    Args:
        source: Path of a file, or an address that begins with ``http://``, ``https://``, ``s3://``
            or ``petrel://``.
        map_location: Where the tensors are put, as for `torch.load`; ``None`` for the CPU.

    Raises:
        CheckpointError: It can't be fetched, is no checkpoint, is damaged, or hides code.
    """
    source, location = str(source), map_location or "cpu"
    scheme = _SCHEME.match(source)
    if scheme is None:
        return read_checkpoint(source, location)
    if scheme[1] not in _FETCHED:
        raise CheckpointError(
            f"{source}: checkpoints are not fetched from {scheme[1]}://; download the file and "
            f"give its path, or an address with {', '.join(f'{name}://' for name in _FETCHED)}"
        )
    try:
        with get_local_path(source) as path:
            return read_checkpoint(path, location)
    except (OSError, ImportError) as error:
        raise CheckpointError(f"{source} can't be fetched: {error}; check the address") from error


def make_mmengine_read_safely() -> None:
    """Give all of MMEngine's own doors, such as ``init_cfg`` of any module, the same reader."""
    for prefix in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(prefix, _load_from_anywhere, force=True)


def _load_from_anywhere(filename: str, map_location: str | None = None) -> dict:
    return read_anywhere(filename, map_location)
