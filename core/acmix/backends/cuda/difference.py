"""CUDA kernels of the differences of a pixel and its neighbourhood."""

from collections.abc import Sequence

from torch import Tensor

from acmix import ops
from acmix.backends.cuda.tiles import Pixels, cut_pixels
from acmix.backends.cuda.window import Window
from acmix.ops.difference import neighbourhood_difference
from acmix.ops.registration import kernel

__all__ = ["neighbourhood_difference"]


@kernel(ops.difference, "CUDA")
def _forward(
    a: Tensor, b: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Differences (B, C, k², Ho, Wo) of a pixel of ``a`` and the window of ``b`` around it."""
    window = Window(b.shape[2:], b.dtype, kernel_size, stride, dilation, reflect)
    a, b = a.contiguous(), b.contiguous()
    out = a.new_empty(*a.shape[:2], kernel_size**2, *window.out_size)
    cut = _cut_planes(a, window.out_size)
    window.run("difference", "forward", cut, (a, b, out, *window.sizes, cut.blocks_per_plane))
    return out


@kernel(ops.difference_backward, "CUDA")
def _backward(
    grad: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of both maps."""
    window = Window((height, width), grad.dtype, kernel_size, stride, dilation, reflect)
    grad, shape = grad.contiguous(), (*grad.shape[:2], height, width)
    da = grad.new_empty(shape) if stride == 1 else grad.new_zeros(shape)
    db = grad.new_empty(shape)
    cut = _cut_planes(grad, window.out_size)
    sizes = (*window.in_size, *window.out_size, kernel_size, stride, cut.blocks_per_plane)
    window.run("difference", "grad_a", cut, (grad, da, *sizes))
    cut = _cut_planes(grad, window.in_size)
    window.run("difference", "grad_b", cut, (grad, db, *window.sizes, cut.blocks_per_plane))
    return da, db


def _cut_planes(x: Tensor, size: Sequence[int]) -> Pixels:
    return cut_pixels(size[0] * size[1], x.shape[0] * x.shape[1])
