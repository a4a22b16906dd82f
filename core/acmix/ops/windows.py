"""Attention inside the windows of a map."""

import math

from torch import Tensor

from acmix.ops.registration import call, define


def map_window_attention(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, *, window_size: tuple[int, int]
) -> Tensor:
    """See ``acmix.map_window_attention``."""
    return call(windows, qkv, bias, mask, *window_size)


def _fake(qkv, bias, mask, height, width):
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


def _fake_backward(grad, qkv, bias, mask, height, width):
    dmask = None if mask is None else mask.new_empty(mask.shape)
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape), dmask


def _multiply_adds(qkv, bias, mask, height, width):
    return 2 * math.prod(qkv) // 3 * height * width


def _multiply_adds_backward(grad, *args):
    return 5 * _multiply_adds(*args) // 2


def _setup(ctx, inputs, output):
    qkv, bias, mask, *ctx.window_size = inputs
    ctx.save_for_backward(qkv, bias, mask)


def _backward(ctx, grad):
    return *windows_backward(grad, *ctx.saved_tensors, *ctx.window_size), None, None


_ARGUMENTS = "Tensor qkv, Tensor bias, Tensor? mask, int height, int width"

windows_backward = define(
    f"windows_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor?)",
    _fake_backward,
    multiply_adds=_multiply_adds_backward,
)
windows = define(
    f"windows({_ARGUMENTS}) -> Tensor",
    _fake,
    _backward,
    _setup,
    multiply_adds=_multiply_adds,
)
