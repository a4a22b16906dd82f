"""One way for checkpoints to come in, wherever they are and whoever asks for them."""

import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor

from acmix.checkpoint import read_checkpoint, state_dict_of
from acmix.errors import CheckpointError
from acmix.mm.conversion import BACKBONE
from acmix.mm.download import download
from acmix.mm.loading import from_file
from acmix.suggest import did_you_mean

_SCHEME = re.compile(r"([A-Za-z][\w+.-]*)://")
# What MMEngine's storage backends fetch as a file.
_STORED = ("s3", "petrel")
# Names of files, and MMEngine's tables of their addresses.
_TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "torchvision": lambda: checkpoint.get_torchvision_models(),
    "modelzoo": lambda: checkpoint.get_torchvision_models(),
    "open-mmlab": lambda: checkpoint.get_external_models(),
    "openmmlab": lambda: checkpoint.get_external_models(),
    "mmcls": lambda: checkpoint.get_mmcls_models(),
}
_KNOWN = ("file", "http", "https", *_STORED, *_TABLES)


def is_address(source: str) -> bool:
    """Whether it is no path of a file but something like ``https://...`` or ``torchvision://...``."""
    return _SCHEME.match(str(source)) is not None


def read_anywhere(source: str, map_location: str | torch.device | Callable | None = "cpu") -> dict:
    """Read a checkpoint of a file or an address as plain data, without executing anything in it.

    Args:
        source: Path of a file; an address that begins with ``file://``, ``http://``, ``https://``,
            ``s3://`` or ``petrel://``; or a name after ``torchvision://``, ``open-mmlab://`` or
            ``mmcls://``. What is downloaded stays in torch's cache.
        map_location: Where the tensors are put, as for `torch.load`; ``None`` for the CPU.

    Raises:
        CheckpointError: It can't be fetched, is no checkpoint, is damaged, or hides code.
    """
    source, location = str(source), map_location or "cpu"
    scheme, _, rest = source.partition("://") if is_address(source) else ("", "", source)
    if scheme in _TABLES:
        return read_anywhere(_address_of(scheme, rest), location)
    if scheme in ("http", "https"):
        return read_checkpoint(download(source), location)
    if scheme in ("", "file"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(source).path) if scheme else rest
        return read_checkpoint(os.path.expanduser(path), location)
    if scheme not in _STORED:
        raise CheckpointError(
            f"{source}: checkpoints are not fetched from {scheme}://; download the file and give "
            f"its path, or an address with {', '.join(f'{name}://' for name in _KNOWN)}"
        )
    try:
        with get_local_path(source) as path:
            return read_checkpoint(path, location)
    except (OSError, ImportError) as error:
        raise CheckpointError(f"{source} can't be fetched: {error}; check the address") from error


def make_mmengine_read_safely() -> None:
    """Give all of MMEngine's own doors, such as ``init_cfg`` of any module, the same reader."""
    for prefix in [*CheckpointLoader._schemes, "file://"]:
        CheckpointLoader.register_scheme(prefix, load_from_anywhere, force=True)


def load_from_anywhere(filename: str, map_location: str | None = None) -> dict:
    """Read a checkpoint in the form that MMEngine's loaders expect, whatever it had before.

    Returns:
        ``state_dict`` and ``meta``, and what else was beside the weights.
    """
    content = read_anywhere(filename, map_location)
    try:
        weights = state_dict_of(content, filename)
    except CheckpointError:  # no weights; what it is good for, its caller knows
        return content
    if str(filename).startswith("mmcls://"):  # whose loader gives the backbone alone
        weights = {n[len(BACKBONE) :]: w for n, w in weights.items() if n.startswith(BACKBONE)}
    rest = {key: value for key, value in content.items() if not isinstance(value, Tensor)}
    meta = content.get("meta")
    # MMEngine's own runner executes this text when it resumes, to compare numbers of GPUs.
    meta = {k: v for k, v in meta.items() if k != "config"} if isinstance(meta, dict) else {}
    return {**rest, "meta": meta, "state_dict": from_file(weights, str(filename))}


def _address_of(scheme: str, name: str) -> str:
    addresses = _TABLES[scheme]()
    name = checkpoint.get_deprecated_model_names().get(name, name)
    if name not in addresses:
        raise CheckpointError(
            f"{scheme}://{name}: there is no such name{did_you_mean(name, addresses)}; see "
            "MMEngine's list"
        )
    address = addresses[name]
    return address if is_address(address) else str(Path(checkpoint._get_mmengine_home(), address))
