"""Compiled CPU kernels (``acmix/csrc/cpu``), built on first use where a compiler is at hand.

float32 and float64 run as they are; float16 and bfloat16 are computed in float32. Sums over the
channels and the window are kept in that type, and results don't depend on the number of threads.
"""

import torch
from torch import Tensor

# Importing a stem registers its kernels.
from acmix.backends.cpu import library
from acmix.backends.cpu.aggregation import neighbourhood_aggregation
from acmix.backends.cpu.attention import sliding_window_attention
from acmix.backends.cpu.convolution import convolution_path, split_convolution_path
from acmix.backends.cpu.difference import neighbourhood_difference
from acmix.backends.cpu.mixing import mixed_paths
from acmix.backends.cpu.windows import map_window_attention
from acmix.backends.derivatives import transformed
from acmix.tracing import constant_when_compiled

__all__ = [
    "convolution_path",
    "map_window_attention",
    "mixed_paths",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "split_convolution_path",
    "why_not",
]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``."""
    reasons = []
    if op not in __all__:
        reasons.append("torch's own kernels are the fast ones for it")
    if x.dtype not in _DTYPES:
        reasons.append(f"dtype {x.dtype} is not floating point")
    if x.device.type != "cpu":
        reasons.append(f"the tensors are on {x.device}")
    reasons += transformed()
    # Last, and only for calls that could run: finding out may build the library.
    problem = _library_problem() if not reasons else None
    return reasons if problem is None else [f"the CPU kernels are missing: {problem}"]


@constant_when_compiled
def _library_problem() -> str | None:
    return library.problem()
