"""States of optimisers and schedulers, fitted to those of this run before they are loaded.

Both classes of torch and MMEngine take over whatever attributes a state dict names.
"""

from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from acmix.errors import CheckpointError


def fit_optimizer(saved: dict, wrapper: OptimWrapper | OptimWrapperDict, source: str) -> dict:
    """The state of an optimiser wrapper, with this run's settings wherever the file has none.

    Args:
        saved: State dict of a wrapper, or of several by name.
        wrapper: The wrapper or wrappers that will load it.
        source: File name for messages.

    Raises:
        CheckpointError: It is the state of another optimiser or model.
    """
    if isinstance(wrapper, OptimWrapperDict):
        return {
            name: fit_optimizer(saved.get(name, {}), part, source) for name, part in wrapper.items()
        }
    current = wrapper.state_dict()
    groups: Any = saved.get("param_groups")
    state: Any = saved.get("state")
    shapes = [p.shape for group in wrapper.param_groups for p in group["params"]]
    try:
        fitted = {
            "param_groups": [
                _fit_group(group, own)
                for group, own in zip(groups, current["param_groups"], strict=True)
            ],
            "state": {index: _checked(entry, shapes[index]) for index, entry in state.items()},
        }
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its optimiser is not this run's; resume with the settings of the run that "
            "saved it, or start from its weights with --cfg-options load_from=..."
        ) from error
    # What a wrapper adds: the loss scale of mixed precision, settings for the log.
    others = current.keys() - fitted.keys()
    return fitted | {name: _fit(saved.get(name), current[name]) for name in others}


def fit_schedulers(saved: Any, schedulers: Any, source: str) -> Any:
    """States of schedulers, restricted to the attributes that these schedulers have.

    Args:
        saved: A list of state dicts, or several such lists by name.
        schedulers: The schedulers of this run in the same order.
        source: File name for messages.

    Raises:
        CheckpointError: There are more or fewer schedulers than in this run.
    """
    if isinstance(schedulers, dict):
        named = saved if isinstance(saved, dict) else {}
        return {n: fit_schedulers(named.get(n), part, source) for n, part in schedulers.items()}
    if not isinstance(saved, list) or len(saved) != len(schedulers):
        raise CheckpointError(
            f"{source}: its param_schedulers are not this run's; resume with the settings of the "
            "run that saved it"
        )
    return [_fit(state, own.state_dict()) for state, own in zip(saved, schedulers, strict=True)]


def _fit_group(saved: dict, current: dict) -> dict:
    if len(saved["params"]) != len(current["params"]):
        raise ValueError("another number of parameters")
    return {**_fit(saved, current), "params": current["params"]}


def _checked(entry: dict, shape: tuple[int, ...]) -> dict:
    """The state of one parameter: numbers and tensors, those of as many dimensions of its shape."""
    for value in entry.values():
        if isinstance(value, Tensor) and value.dim() == len(shape) and value.shape != shape:
            raise ValueError("another shape")
        if not isinstance(value, (Tensor, int, float, type(None))):
            raise TypeError("no state of a parameter")
    return entry


def _fit(saved: Any, current: Any) -> Any:
    """The saved value where it is of the current one's kind, else the current one."""
    if isinstance(current, dict):
        named = saved if isinstance(saved, dict) else {}
        return {key: _fit(named.get(key), value) for key, value in current.items()}
    if isinstance(current, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(saved) != len(current):
            return current
        return type(current)(_fit(s, c) for s, c in zip(saved, current, strict=True))
    if isinstance(current, Tensor):
        return saved if isinstance(saved, Tensor) and saved.shape == current.shape else current
    is_number = type(saved) in (int, float)
    return saved if is_number and (current is None or type(current) in (int, float)) else current
