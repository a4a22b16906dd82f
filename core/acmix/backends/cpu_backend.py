"""Compiled CPU kernels (``acmix/csrc/cpu``), built on first use where a compiler is at hand.

float32 and float64 run as they are; float16 and bfloat16 are computed in float32. Sums over the
channels and the window are kept in that type, and results don't depend on the number of threads.
"""

import math

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.folding import fold
from acmix.backends.kernel_calls import (
    KERNEL_OPS,
    neighbourhood_aggregation,
    neighbourhood_difference,
    sliding_window_attention,
)
from acmix.geometry import one_hot_shifts
from acmix.native import library

__all__ = [
    "convolution_path",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "sliding_window_paths",
    "why_not",
]

_OPS = (*KERNEL_OPS, "convolution_path", "sliding_window_paths")
# Multiply-adds per pixel and channel are k_c² 3N N folded and k_c² (3N + k_c² N) otherwise: equal
# at N = 4, where folding saves a pass.
_MAX_FOLDED_MAPS = 12

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def _library_problem() -> str | None:
    return library.problem()


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``."""
    reasons = []
    if op not in _OPS:
        reasons.append("torch's own kernels are the fast ones for it")
    if x.dtype not in _DTYPES:
        reasons.append(f"dtype {x.dtype} is not floating point")
    if x.device.type != "cpu":
        reasons.append(f"the tensors are on {x.device}")
    # Last, and only for calls that could run: finding out may build the library.
    problem = _library_problem() if not reasons else None
    return reasons if problem is None else [f"the CPU kernels are missing: {problem}"]


def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    *,
    stride: int,
) -> Tensor:
    """See ``acmix.convolution_path``."""
    taps, maps = fc_weight.shape
    head_dim = qkv.shape[1] // maps
    if kernels is None:
        shifts = one_hot_shifts(math.isqrt(taps), like=fc_weight)
        kernels = shifts.expand(head_dim, *shifts.shape[-3:])
    layer, kernels = _foldable(fc_weight, kernels, fc_bias)
    return ops.convolution(qkv.unflatten(1, (maps, head_dim)), layer, kernels, stride)


def sliding_window_paths(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    *,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """See ``acmix.sliding_window_paths``."""
    layer, kernels = _foldable(fc_weight, kernels, None)
    heads = fc_weight.shape[1] // 3
    window = (kernel_size, stride, dilation)
    return ops.paths(qkv, position, layer, kernels, heads, *window)[:2]


def _foldable(
    fc_weight: Tensor, kernels: Tensor, fc_bias: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Layer and kernels as the operators take them: no layer where folding it is cheaper."""
    maps = fc_weight.shape[1]
    if fc_bias is not None:
        # A map of ones carries the bias, and the padding that comes after the layer cuts it off.
        fc_weight = torch.cat([fc_weight, fc_bias[:, None]], dim=1)
    if maps <= _MAX_FOLDED_MAPS:
        return None, fold(kernels, fc_weight)
    return fc_weight, kernels
