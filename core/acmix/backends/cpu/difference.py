"""CPU kernels of the differences of a pixel and its neighbourhood."""

from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.geometry import output_size, usable_window
from acmix.layout import computable
from acmix.ops.difference import neighbourhood_difference
from acmix.ops.registration import kernel

__all__ = ["neighbourhood_difference"]


@kernel(ops.difference, "CPU")
def _forward(
    a: Tensor, b: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    _, stride, dilation = usable_window(a.shape[2:], kernel_size, stride, dilation)
    size = output_size(a.shape[2:], stride)
    out = computable(a).new_empty((*a.shape[:2], kernel_size**2, *size))
    library.load().run(
        "difference",
        library.window(_planes(a).shape, kernel_size, stride, dilation, reflect=reflect),
        dict(a=_planes(computable(a)), b=_planes(computable(b)), out=out),
    )
    return out.to(a.dtype)


@kernel(ops.difference_backward, "CPU")
def _backward(
    grad: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    _, stride, dilation = usable_window((height, width), kernel_size, stride, dilation)
    g = computable(grad)
    da, db = (g.new_empty((*grad.shape[:2], height, width)) for _ in range(2))
    library.load().run(
        "difference",
        library.window(
            _planes(da).shape, kernel_size, stride, dilation, reflect=reflect, backward=True
        ),
        dict(grad=g, grad_a=_planes(da), grad_b=_planes(db)),
    )
    return da.to(grad.dtype), db.to(grad.dtype)


def _planes(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, C, 1, H, W): a channel is a head of one channel."""
    return x.unsqueeze(2)
