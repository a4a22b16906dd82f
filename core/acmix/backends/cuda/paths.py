"""CUDA kernels of both paths on one set of projections: attention and convolution path.

The kernels are those of the two operators, and read the projections where they lie. On paper, in
maps read or written at stride 1 and N heads: 10 N forward, where the two operators copy queries
and values and move 14 N; 25 N backward instead of 41 N, since attention writes the gradient of the
projections and the convolution path adds to it, in place of two gradients and their sum.
"""

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.cuda.attention import at_stride, attend, attend_backward
from acmix.backends.cuda.convolution import convolve, convolve_backward
from acmix.layout import maps_of
from acmix.ops.paths import sliding_window_paths
from acmix.ops.registration import kernel

__all__ = ["sliding_window_paths"]


@kernel(ops.paths, "CUDA")
def _forward(
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    maps = maps_of(qkv.contiguous(), heads)
    window = (kernel_size, stride, dilation)
    attention, lse = attend(*_of_attention(maps, position, heads, stride), window)
    return attention.flatten(1, 2), convolve(maps, layer, kernels, stride), lse


@kernel(ops.paths_backward, "CUDA")
def _backward(
    grad_attention: Tensor,
    grad_convolution: Tensor,
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    lse: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both paths sum up in one gradient of the projections."""
    maps = maps_of(qkv.contiguous(), heads)
    dmaps = torch.empty_like(maps)
    dq, dkeys, _ = dmaps.unflatten(1, (3, heads)).unbind(1)
    q, k, v = _of_attention(maps, position, heads, stride)
    of_queries = dmaps if stride == 1 else torch.empty_like(q)
    grad = grad_attention.unflatten(1, (heads, -1))
    window = (kernel_size, stride, dilation)
    attend_backward(grad, (q, k, v), lse, window, (of_queries, dmaps, dmaps))
    if stride > 1:
        # Queries between the strides have no gradient.
        dq.zero_()[..., ::stride, ::stride] = of_queries
    real = torch.float64 if maps.dtype == torch.float64 else torch.float32
    dposition = dkeys.sum((0, 1), dtype=real).neg().to(position.dtype)
    weights = convolve_backward(grad_convolution, maps, layer, kernels, stride, dmaps, add=True)
    return dmaps.flatten(1, 2), dposition, *weights


def _of_attention(
    maps: Tensor, position: Tensor, heads: int, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of contiguous projections, as ``attend`` takes them.

    The position costs a copy of the keys: to take it off in the kernels would read it once for
    every head and tile.
    """
    q, k, _ = maps.unflatten(1, (3, heads)).unbind(1)
    queries = maps if stride == 1 else at_stride(q, stride)
    return queries, (k - position.to(maps.dtype)).contiguous(), maps
