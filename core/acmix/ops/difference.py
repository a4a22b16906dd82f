"""Differences of a pixel and its neighbourhood."""

from torch import Tensor

from acmix.geometry import output_size
from acmix.ops.registration import WINDOW, call, define


def neighbourhood_difference(
    a: Tensor, b: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_difference``."""
    return call(difference, a, b, kernel_size, stride, dilation, reflect)


def _fake(a, b, kernel_size, stride, dilation, reflect):
    return a.new_empty((*a.shape[:2], kernel_size**2, *output_size(a.shape[2:], stride)))


def _fake_backward(grad, height, width, kernel_size, stride, dilation, reflect):
    shape = (*grad.shape[:2], height, width)
    return grad.new_empty(shape), grad.new_empty(shape)


def _multiply_adds(*_):
    """Differences have no products."""
    return 0


def _setup(ctx, inputs, output):
    # Linear: the gradient needs the size of the maps alone.
    a, _, *ctx.window = inputs
    ctx.size = a.shape[2:]


def _backward(ctx, grad):
    return *difference_backward(grad, *ctx.size, *ctx.window), None, None, None, None


difference_backward = define(
    f"difference_backward(Tensor grad, SymInt height, SymInt width, {WINDOW}, bool reflect) "
    "-> (Tensor, Tensor)",
    _fake_backward,
    multiply_adds=_multiply_adds,
)
difference = define(
    f"difference(Tensor a, Tensor b, {WINDOW}, bool reflect) -> Tensor",
    _fake,
    _backward,
    _setup,
    multiply_adds=_multiply_adds,
)
