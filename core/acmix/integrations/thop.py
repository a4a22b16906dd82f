"""thop, and ultralytics' edition of it, count layers of ours by their own count."""

from importlib import import_module
from typing import Any

from torch import Tensor

import acmix.modules
from acmix.modules import ACmixBase


def register() -> None:
    """Give ``thop.profile`` a rule for every layer. Calling it again changes nothing."""
    kinds = (kind for kind in vars(acmix.modules).values() if isinstance(kind, type))
    layers = [kind for kind in kinds if issubclass(kind, ACmixBase)]
    import_module("thop.profile").register_hooks.update(dict.fromkeys(layers, _count))


def _count(layer: Any, inputs: tuple, output: Tensor) -> None:
    layer.total_ops += layer.count_call(*inputs)
    for child in layer.modules():
        # The layer's count has theirs.
        if child is not layer and hasattr(child, "total_ops"):
            child.total_ops *= 0
