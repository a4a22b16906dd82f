"""The operators that have compiled kernels, as torch operators: one file each, whole.

Schema, shapes for tracing (the fake) and gradient are here; the kernels are registered by
``acmix.backends``, which imports this package and is never imported by it. Equations are in
``acmix.functional``; argument checks too, so call these operators through it.

All operators return fresh memory and have first derivatives only.
"""

from acmix.ops.aggregation import aggregation, aggregation_backward
from acmix.ops.attention import attention, attention_backward
from acmix.ops.convolution import convolution, convolution_backward
from acmix.ops.difference import difference, difference_backward
from acmix.ops.mixing import mixed, mixed_backward
from acmix.ops.paths import paths, paths_backward
from acmix.ops.windows import windows, windows_backward

__all__ = [
    "aggregation",
    "aggregation_backward",
    "attention",
    "attention_backward",
    "convolution",
    "convolution_backward",
    "difference",
    "difference_backward",
    "mixed",
    "mixed_backward",
    "paths",
    "paths_backward",
    "windows",
    "windows_backward",
]
