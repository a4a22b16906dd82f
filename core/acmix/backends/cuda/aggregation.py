"""CUDA kernels of the aggregation of a neighbourhood."""

from collections.abc import Sequence

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.cuda.sources import CHANNELS
from acmix.backends.cuda.tiles import Pixels, cut_pixels
from acmix.backends.cuda.window import Window
from acmix.ops.aggregation import neighbourhood_aggregation
from acmix.ops.registration import kernel

__all__ = ["neighbourhood_aggregation"]


@kernel(ops.aggregation, "CUDA")
def _forward(
    v: Tensor, w: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Sum of the window's values (B, C, H, W) under the weights (B, Cw, k², Ho, Wo) of a pixel."""
    window = Window(v.shape[2:], v.dtype, kernel_size, stride, dilation, reflect)
    v, w = v.contiguous(), w.contiguous()
    out = v.new_empty(*v.shape[:2], *window.out_size)
    cut, chunks = _cut_channels(v, w, window.out_size)
    sizes = (v.shape[1], w.shape[1], chunks, *window.sizes, cut.blocks_per_plane)
    window.run("aggregation", "forward", cut, (v, w, out, *sizes))
    return out


@kernel(ops.aggregation_backward, "CUDA")
def _backward(
    grad: Tensor,
    v: Tensor,
    w: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the values and the weights."""
    window = Window(v.shape[2:], v.dtype, kernel_size, stride, dilation, reflect)
    grad, v, w = grad.contiguous(), v.contiguous(), w.contiguous()
    dv, dw = torch.empty_like(v), torch.empty_like(w)
    channels, groups = v.shape[1], w.shape[1]
    cut, chunks = _cut_channels(v, w, window.in_size)
    of_values = (channels, groups, chunks, *window.sizes, cut.blocks_per_plane)
    window.run("aggregation", "grad_value", cut, (grad, w, dv, *of_values))
    cut = cut_pixels(window.out_size[0] * window.out_size[1], v.shape[0] * groups)
    of_weights = (channels, groups, *window.sizes, cut.blocks_per_plane)
    window.run("aggregation", "grad_weight", cut, (grad, v, dw, *of_weights))
    return dv, dw


def _cut_channels(v: Tensor, w: Tensor, size: Sequence[int]) -> tuple[Pixels, int]:
    """Threads for some channels that share a weight, and how many such chunks there are."""
    groups = w.shape[1]
    chunks = -(-v.shape[1] // (CHANNELS * groups))
    return cut_pixels(size[0] * size[1], v.shape[0] * groups * chunks), chunks
