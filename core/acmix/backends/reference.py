"""The reference as a backend: runs everything, slowly."""

from torch import Tensor

from acmix.backends.reasons import not_floating
from acmix.reference import (
    convolution_path,
    neighbourhood_aggregation,
    neighbourhood_difference,
    sliding_window_attention,
    window_attention,
)

__all__ = [
    "convolution_path",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "why_not",
    "window_attention",
]


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``."""
    return not_floating(x)
