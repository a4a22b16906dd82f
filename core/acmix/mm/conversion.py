"""Weights of any origin under the names of our models: what every family's renaming shares."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from acmix.modules.base import ACmixBase

BACKBONE = "backbone."
HEAD = "head.fc."

# Renames the weights of a backbone without ``backbone.`` and tells their origin.
Rename = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], str]]


@dataclass
class Conversion:
    """A state dict under the names of our models, and what the renaming knows about it.

    Attributes:
        state_dict: ``backbone.*`` names and those of the heads.
        origin: What the weights were made by, for the report.
        defaults: Values of parameters that follow from the origin, for models that have them.
        fresh: Names of the model that such weights can't fill: they keep their start.
        lacking: Those of them without which it does not compute what the weights' own model did.
        dropped: Weights that have no place in the model, by name.
    """

    state_dict: dict[str, Tensor]
    origin: str
    defaults: dict[str, Tensor] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    dropped: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def recognise(cls, weights: dict[str, Tensor], origin: str, layer: str) -> "Conversion":
        """Tell ACmix weights from those of the model with attention alone.

        The latter mean alpha = 1 and beta = 0 in every layer.

        Args:
            weights: Under our names.
            origin: What the weights were made by.
            layer: Name of the attention layer in every block.
        """
        matches = (re.match(rf"(.*\.{layer}\.)", name) for name in weights)
        layers = list(dict.fromkeys(match[1] for match in matches if match))
        own = (*ACmixBase.RATES, *ACmixBase.CONVOLUTION)
        if not layers or any(prefix + name in weights for prefix in layers for name in own):
            return cls(weights, f"ACmix, {origin}")
        rates = ACmixBase.attention_alone().items()
        defaults = {prefix + name: rate for prefix in layers for name, rate in rates}
        fresh = [prefix + name for prefix in layers for name in ACmixBase.CONVOLUTION]
        return cls(weights, f"plain attention, {origin}", defaults, fresh)


def renamed(weights: dict[str, Any], rename: Rename, head: str) -> tuple[dict[str, Any], str]:
    """Weights under the names of a whole model of ours, and their origin.

    Those of a bare network become ``backbone.*`` and ``head.fc.*``. Of a model that has a
    ``backbone.`` already, such as a detector, the backbone's are renamed and the rest stays.

    Args:
        weights: Weights, name to tensor.
        rename: Renames the weights of a backbone and tells their origin.
        head: Pattern of what the names of a bare network's last layer begin with.
    """
    is_whole = any(name.startswith(BACKBONE) for name in weights)
    rest, body = {}, {}
    for name, weight in weights.items():
        if is_whole and not name.startswith(BACKBONE):
            rest[name] = weight
        elif not is_whole and (match := re.match(rf"{re.escape(HEAD)}|{head}", name)):
            rest[HEAD + name[match.end() :]] = weight
        else:
            body[name.removeprefix(BACKBONE)] = weight
    body, origin = rename(body)
    return {**{BACKBONE + name: weight for name, weight in body.items()}, **rest}, origin


def of_backbone(conversion: Conversion) -> Conversion:
    """The backbone's part of a whole model's weights, without the prefix; the rest is dropped."""
    heads = {n: w for n, w in conversion.state_dict.items() if not n.startswith(BACKBONE)}
    return Conversion(
        _strip(conversion.state_dict),
        conversion.origin,
        _strip(conversion.defaults),
        list(_strip(dict.fromkeys(conversion.fresh))),
        list(_strip(dict.fromkeys(conversion.lacking))),
        conversion.dropped | heads,
    )


def _strip(weights: dict[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(BACKBONE): w for n, w in weights.items() if n.startswith(BACKBONE)}
