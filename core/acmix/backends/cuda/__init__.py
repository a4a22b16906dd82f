"""CUDA kernels (``acmix/csrc/cuda``), compiled for the device at hand by CuPy at the first call.

Importing this needs torch alone. Maps of any strides come in and are made contiguous here.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

# Importing a stem registers its kernels.
from acmix.backends.cuda.aggregation import neighbourhood_aggregation
from acmix.backends.cuda.attention import sliding_window_attention
from acmix.backends.cuda.convolution import convolution_path
from acmix.backends.cuda.difference import neighbourhood_difference
from acmix.backends.cuda.paths import sliding_window_paths
from acmix.backends.cuda.sources import TYPES
from acmix.backends.derivatives import transformed
from acmix.tracing import constant_when_compiled

__all__ = [
    "convolution_path",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "sliding_window_paths",
    "why_not",
]


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``; an empty list if it can."""
    reasons = []
    if op not in __all__:
        reasons.append(f"there is no CUDA kernel of {op}")
    if x.dtype not in TYPES:
        names = ", ".join(str(dtype) for dtype in TYPES)
        reasons.append(f"dtype {x.dtype} is not one of {names}")
    if x.device.type != "cuda":
        reasons.append(f"the tensor is on {x.device}, not on a CUDA device")
    elif not _has_cupy():
        reasons.append(f"CuPy is missing; {_install_cupy()}")
    return reasons + transformed()


@constant_when_compiled
def _has_cupy() -> bool:
    return find_spec("cupy") is not None


def _install_cupy() -> str:
    """Which of CuPy's packages goes with this torch."""
    if torch.version.cuda is None:
        return "and this torch is built without CUDA"
    major = torch.version.cuda.split(".")[0]
    return f"pip install cupy-cuda{major}x" if int(major) > 11 else "torch with CUDA 12 is needed"
