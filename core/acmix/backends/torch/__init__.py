"""Operators in plain torch, without a k²-fold copy of any map: on any device, in any dtype."""

from torch import Tensor

from acmix.backends.reasons import not_floating
from acmix.backends.torch.aggregation import neighbourhood_aggregation
from acmix.backends.torch.attention import sliding_window_attention, window_attention
from acmix.backends.torch.convolution import convolution_path
from acmix.backends.torch.difference import neighbourhood_difference

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
