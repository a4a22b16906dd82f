"""Checkpoints as plain data, so that ``torch.load(weights_only=True)`` reads them.

MMEngine puts its ``HistoryBuffer`` objects and numpy values into a checkpoint, and torch ≥ 2.6
refuses to load those again. Written as plain numbers, lists and tensors they need no exception.
"""

from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import HOOKS

from acmix import digests

_HISTORY = "history_buffer"


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Turns a checkpoint into plain data with a digest of every tensor before it is saved."""

    priority = "LOWEST"

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace every object by plain data and add the digests, in place."""
        plain = to_plain(checkpoint)
        checkpoint.clear()
        checkpoint.update(plain, **{digests.KEY: digests.digests_of(plain)})


def to_plain(value: Any, name: str = "checkpoint") -> Any:
    """A copy of nested containers with tensors, strings, numbers and ``None`` only.

    Numpy values become numbers, lists or tensors, and log histories tagged dicts. Anything else
    is left out with a warning that names its place.
    """
    if isinstance(value, HistoryBuffer):
        return _from_history(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else value.tolist()
    if isinstance(value, dict):
        entries = ((key, to_plain(item, f"{name}.{key}")) for key, item in value.items())
        return {key: item for key, item in entries if item is not _LEFT_OUT}
    if isinstance(value, (list, tuple, set)):
        items = [to_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        kind = list if isinstance(value, list) else tuple
        return kind(item for item in items if item is not _LEFT_OUT)
    if value is None or isinstance(value, (str, bytes, bool, int, float, complex, torch.Tensor)):
        return value
    logger = MMLogger.get_current_instance()
    logger.warning(f"{name} is left out of the checkpoint: {type(value).__name__} is not data")
    return _LEFT_OUT


_LEFT_OUT = object()


def _from_history(buffer: HistoryBuffer) -> dict:
    log, counts = buffer.data
    return {
        "kind": _HISTORY,
        "log": torch.as_tensor(np.asarray(log, dtype=np.float64)),
        "counts": torch.as_tensor(np.asarray(counts, dtype=np.int64)),
        "max_length": int(buffer.max_length),
    }


def to_history(data: Any) -> HistoryBuffer | None:
    """A log history from its plain form; ``None`` for anything else."""
    if not (isinstance(data, dict) and data.get("kind") == _HISTORY):
        return None
    log, counts, length = (data.get(name) for name in ("log", "counts", "max_length"))
    if not (isinstance(log, torch.Tensor) and isinstance(counts, torch.Tensor)):
        return None
    if log.shape != counts.shape or log.dim() != 1 or type(length) is not int:
        return None
    return HistoryBuffer(log.tolist(), counts.tolist(), max_length=max(length, 1))
