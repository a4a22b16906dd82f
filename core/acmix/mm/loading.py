"""Weights of any origin through every loader that ends in ``load_state_dict``.

torch's and MMEngine's loaders both hand the names of a state dict to ``_load_from_state_dict`` of a
model and of its parts. Names of a bare network reach no part, so the model that holds a backbone of
ours renames them too, by a hook that it gets when the backbone becomes a part of it.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from acmix.checkpoint import state_dict_of
from acmix.mm.conversion import BACKBONE
from acmix.mm.weights import DERIVED, check_any_fits, converted, fit

_SOURCE = "acmix_source"
_CONTAINERS = ("model", "state_dict")


def from_file(weights: dict[str, Tensor], source: str) -> OrderedDict[str, Tensor]:
    """A state dict that tells the model that it is loaded into which file it is from.

    A model that was never initialised must then be filled by it: it is to be used, not trained.
    """
    marked = OrderedDict(weights)
    # The way by which both loaders hand versions to the modules.
    marked._metadata = OrderedDict({"": {_SOURCE: source}})  # type: ignore[attr-defined]
    return marked


def hear_of_holders(kind: type[nn.Module]) -> None:
    """Let every module that gets a ``backbone`` of a class rename what is loaded into it."""

    def call(holder: nn.Module, name: str, part: nn.Module | None) -> None:
        if name == BACKBONE.rstrip(".") and isinstance(part, kind):
            holder.register_load_state_dict_pre_hook(_rename_for_holder)

    register_module_module_registration_hook(call)


def _rename_for_holder(
    holder: nn.Module, state_dict: dict, prefix: str, metadata: dict, *args: Any
) -> None:
    rename_loaded(holder, state_dict, prefix, metadata)


def rename_loaded(module: nn.Module, state_dict: dict, prefix: str, metadata: dict) -> None:
    """Put what is being loaded under the module's names, in place.

    What is there under the module's names already stays as it is. Of a file that MMEngine read, all
    must fit as it must for ``acmix.mm.load_weights``; otherwise what is missing or left over is for
    the loader to report.

    Args:
        module: A model that has a ``backbone`` of ours, or such a backbone.
        state_dict: What its ``_load_from_state_dict`` is given.
        prefix: What the names of the module begin with there.
        metadata: What it is given of the state dict's ``_metadata``.

    Raises:
        CheckpointError: Nothing fits the backbone, or, of a file, not all that must.
    """
    if not prefix:
        _unpack(state_dict)
    given = {n.removeprefix(prefix): w for n, w in state_dict.items() if n.startswith(prefix)}
    if not given:
        return
    source = metadata.get(_SOURCE)
    weights = _fitted(module, given, source) if source else _renamed(module, given)
    for name in given:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: weight for name, weight in weights.items()})


def _unpack(state_dict: dict) -> None:
    """Take the weights out of the container of a released file."""
    if any(isinstance(state_dict.get(key), dict) for key in _CONTAINERS):
        weights = state_dict_of(dict(state_dict))
        state_dict.clear()
        state_dict.update(weights)


def _fitted(module: nn.Module, given: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """All of the module's weights, where the file has them its own."""
    backbone: Any = getattr(module, "backbone", module)
    fitted = fit(module, given, source, complete=not backbone.is_init)
    fitted.report(source)
    return fitted.own | fitted.weights


def _renamed(module: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the module's names; if they are all of another origin's, made complete."""
    conversion, own, heads = converted(module, given)
    weights = conversion.state_dict | conversion.defaults
    if not weights.keys() <= set(heads):
        check_any_fits(module, own, heads, weights, "the state dict")
    body = [name for name in own if name not in heads]
    kept = [n for n in body if n in conversion.fresh or n.endswith(DERIVED)]
    if conversion.lacking or not set(body) <= {*weights, *kept}:
        return conversion.state_dict | conversion.dropped
    weights |= conversion.dropped
    return {name: own[name] for name in kept} | weights
