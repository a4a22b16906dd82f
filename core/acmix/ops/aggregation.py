"""Aggregation of a neighbourhood."""

import math

from torch import Tensor

from acmix.geometry import output_size
from acmix.ops.registration import WINDOW, call, define


def neighbourhood_aggregation(
    v: Tensor, w: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_aggregation``."""
    return call(aggregation, v, w, kernel_size, stride, dilation, reflect)


def _fake(v, w, kernel_size, stride, dilation, reflect):
    return v.new_empty((*v.shape[:2], *output_size(v.shape[2:], stride)))


def _fake_backward(grad, v, w, kernel_size, stride, dilation, reflect):
    return v.new_empty(v.shape), w.new_empty(w.shape)


def _multiply_adds(v, w, kernel_size, stride, *_):
    return math.prod(v[:2]) * kernel_size**2 * math.prod(output_size(v[2:], stride))


def _multiply_adds_backward(grad, *args):
    return 2 * _multiply_adds(*args)


def _setup(ctx, inputs, output):
    v, w, *ctx.window = inputs
    ctx.save_for_backward(v, w)


def _backward(ctx, grad):
    grads = aggregation_backward(grad, *ctx.saved_tensors, *ctx.window)
    return *grads, None, None, None, None


aggregation_backward = define(
    f"aggregation_backward(Tensor grad, Tensor v, Tensor w, {WINDOW}, bool reflect) "
    "-> (Tensor, Tensor)",
    _fake_backward,
    multiply_adds=_multiply_adds_backward,
)
aggregation = define(
    f"aggregation(Tensor v, Tensor w, {WINDOW}, bool reflect) -> Tensor",
    _fake,
    _backward,
    _setup,
    multiply_adds=_multiply_adds,
)
