"""A digest of every tensor of a checkpoint, by which damage is noticed whatever made it."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

KEY = "digests"


def named_tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers with the path of each, a shared container once."""
    seen: set[int] = set()
    waiting = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, Tensor):
            yield path, item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            entries = item.items() if isinstance(item, dict) else enumerate(item)
            waiting += [(f"{path}.{key}" if path else str(key), entry) for key, entry in entries]


def digests_of(checkpoint: dict) -> dict[str, str]:
    """SHA-256 of the kind, the shape and the values of every tensor, by its path."""
    return {path: _digest(tensor) for path, tensor in named_tensors(checkpoint)}


def damaged_tensors(checkpoint: dict) -> list[str]:
    """Paths of the tensors that are not what they were when their digests were saved.

    Of a checkpoint without digests, or of one that was read without its values, there are none; nor
    of a part, such as the optimiser's, that was since taken out as a whole.
    """
    saved, rest = checkpoint.get(KEY), {key: v for key, v in checkpoint.items() if key != KEY}
    if not isinstance(saved, dict) or any(tensor.is_meta for _, tensor in named_tensors(rest)):
        return []
    found = digests_of(rest)
    there = tuple(f"{key}." for key in rest)
    paths = {path for path in map(str, saved) if f"{path}.".startswith(there)} | found.keys()
    return sorted(path for path in paths if saved.get(path) != found.get(path))


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()
