"""Weights in the format of safetensors, which has no code in it."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from acmix.errors import CheckpointError

_CLASSES = "classes"


def is_safetensors(file: BinaryIO) -> bool:
    """Whether an open file is of safetensors; it is at its start again."""
    head = file.read(10)
    file.seek(0)
    # The length of a JSON object, and its beginning.
    return head[8:] in (b'{"', b"{}") and int.from_bytes(head[:8], "little") < 1 << 32


def read_safetensors(path: Path, map_location: str | torch.device | Callable) -> dict[str, Any]:
    """The tensors under ``"state_dict"``, and names of classes as MMEngine's files have them.

    Raises:
        CheckpointError: The file is damaged, or safetensors isn't installed.
    """
    from_library, _ = _library(path)
    try:
        with from_library.safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = _meta(file.metadata() or {})
    except from_library.SafetensorError as error:
        raise CheckpointError(
            f"{path} is a damaged safetensors file: copy or download it again.\nReason: {error}"
        ) from error
    if not callable(map_location):
        weights = {name: weight.to(map_location) for name, weight in weights.items()}
    return {"state_dict": weights, "meta": meta}


def write_safetensors(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], classes: tuple[str, ...] | None
) -> None:
    """Write tensors, and the names of the classes that they tell apart if those are known.

    Raises:
        CheckpointError: safetensors isn't installed.
    """
    _, for_torch = _library(path)
    metadata = {"format": "pt"}
    if classes is not None:
        metadata[_CLASSES] = json.dumps(classes)
    # Tensors that share memory are written one by one.
    copies = {name: weight.detach().clone().contiguous() for name, weight in weights.items()}
    for_torch.save_file(copies, path, metadata)


def _meta(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        classes = json.loads(metadata.get(_CLASSES, "null"))
    except (ValueError, RecursionError):
        return {}
    return {} if classes is None else {"dataset_meta": {"classes": classes}}


def _library(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(
            f"{path} is of safetensors, which isn't installed: pip install safetensors"
        ) from error
    return safetensors, safetensors.torch
