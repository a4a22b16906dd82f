"""What a run takes from a checkpoint to go on: known keys, checked by type, and nothing else.

A checkpoint is data of unknown origin. MMEngine parses a text of it as a config, which runs it, and
hands the rest to the message hub and the hooks as it is. Only what is listed here gets that far.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from acmix.checkpoint import state_dict_of
from acmix.errors import CheckpointError, InputError
from acmix.mm.plain import to_history


class _WrongType(Exception):
    """A known key holds something else than it should."""


def admit_training_state(checkpoint: dict, source: str) -> dict:
    """The training state of a checkpoint, as MMEngine's runner resumes it.

    Args:
        checkpoint: As it was read.
        source: File name for messages.

    Returns:
        ``meta`` (epoch, iter, seed, validated), ``state_dict``, ``message_hub`` (log histories,
        best scores, names of checkpoints), ``optimizer``, and where the file has them
        ``param_schedulers``, ``ema_state_dict`` and ``processes``.

    Raises:
        InputError: The checkpoint has weights but no training state.
        CheckpointError: Something known is of another type than it should be.
    """
    if "meta" not in checkpoint or "optimizer" not in checkpoint:
        raise InputError(
            f"{source}: has weights but no training state to resume; "
            "start from it with --cfg-options load_from=..."
        )
    taken = {"message_hub": _message_hub({}, ""), **_take(_KEYS, checkpoint, source)}
    return {**taken, "state_dict": state_dict_of(checkpoint, source)}


def admit_weights(checkpoint: dict, source: str) -> dict:
    """The weights of a checkpoint of any origin, and their averages where it has them.

    Args:
        checkpoint: As it was read.
        source: File name for messages.

    Returns:
        ``state_dict``, and where the file has it ``ema_state_dict``.

    Raises:
        CheckpointError: There are no weights, or something among them is no tensor.
    """
    averages = _take({"ema_state_dict": _tensors}, checkpoint, source)
    return {**averages, "state_dict": state_dict_of(checkpoint, source)}


def class_names(checkpoint: dict) -> tuple[str, ...] | None:
    """Names of the classes that the weights of a checkpoint tell apart, if it says so."""
    meta = checkpoint.get("meta")
    dataset_meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    names = dataset_meta.get("classes") if isinstance(dataset_meta, dict) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _take(keys: dict[str, Callable], checkpoint: dict, source: str) -> dict:
    try:
        return {
            name: take(checkpoint[name], name) for name, take in keys.items() if name in checkpoint
        }
    except _WrongType as error:
        raise CheckpointError(f"{source}: {error}; give a checkpoint of this project") from None


def _meta(meta: Any, name: str) -> dict:
    _check(isinstance(meta, dict), name)
    taken = {key: _count(meta.get(key), f"{name}.{key}") for key in ("epoch", "iter")}
    seed, validated = meta.get("seed"), meta.get("validated", True)
    _check(seed is None or _count(seed, f"{name}.seed") < 2**32, f"{name}.seed")
    _check(isinstance(validated, bool), f"{name}.validated")
    return {**taken, "seed": seed, "validated": validated}


def _message_hub(hub: Any, name: str) -> dict:
    """Log histories and the bookkeeping of checkpoints; all else of the hub a run sets anew."""
    scalars, info = (_mapping(_mapping(hub, name).get(part, {}), f"{name}.{part}") for part in _HUB)
    histories = {key: to_history(value) for key, value in scalars.items()}
    histories = {key: history for key, history in histories.items() if history is not None}
    known = {
        key: take(value, f"{name}.{key}")
        for key, value in info.items()
        for pattern, take in _INFO
        if re.fullmatch(pattern, key)
    }
    return {
        "log_scalars": histories,
        "runtime_info": known,
        "resumed_keys": dict.fromkeys([*histories, *known], True),
    }


def _tensors(value: Any, name: str) -> dict[str, Tensor]:
    for key, tensor in _mapping(value, name).items():
        _check(isinstance(tensor, Tensor), f"{name}.{key}")
    return dict(value)


def _mapping(value: Any, name: str) -> dict:
    _check(isinstance(value, dict) and all(isinstance(key, str) for key in value), name)
    return value


def _list_or_mapping(value: Any, name: str) -> list | dict:
    return list(value) if isinstance(value, (list, tuple)) else _mapping(value, name)


def _mappings(value: Any, name: str) -> list[dict]:
    _check(isinstance(value, (list, tuple)), name)
    return [_mapping(item, name) for item in value]


def _counts(value: Any, name: str) -> list[int]:
    _check(isinstance(value, (list, tuple)), name)
    return [_count(item, name) for item in value]


def _count(value: Any, name: str) -> int:
    _check(type(value) is int and 0 <= value < 2**63, name)
    return value


def _number(value: Any, name: str) -> float:
    _check(type(value) in (int, float), name)
    return value


def _text(value: Any, name: str) -> str:
    _check(isinstance(value, str) and "\0" not in value, name)
    return value


def _check(fits: bool, name: str) -> None:
    if not fits:
        raise _WrongType(f"{name} is not what a run saves there")


_HUB = ("log_scalars", "runtime_info")
_INFO = (
    (r"best_score(_.+)?", _number),
    (r"best_ckpt(_.+)?", _text),
    (r"last_ckpt", _text),
    (r"keep_ckpt_ids", _counts),
)
_KEYS = {
    "meta": _meta,
    "message_hub": _message_hub,
    "optimizer": _mapping,
    "param_schedulers": _list_or_mapping,
    "ema_state_dict": _tensors,
    "processes": _mappings,
}
