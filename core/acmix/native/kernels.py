"""The compiled CPU kernels under the names that ``acmix.ops`` calls."""

from acmix.native.convolution import convolution_backward, convolution_forward
from acmix.native.paths import paths_backward, paths_forward
from acmix.native.windows import (
    aggregation_backward,
    aggregation_forward,
    attention_backward,
    attention_forward,
    subtraction_backward,
    subtraction_forward,
)

__all__ = [
    "aggregation_backward",
    "aggregation_forward",
    "attention_backward",
    "attention_forward",
    "convolution_backward",
    "convolution_forward",
    "paths_backward",
    "paths_forward",
    "subtraction_backward",
    "subtraction_forward",
]
