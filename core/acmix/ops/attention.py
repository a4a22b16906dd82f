"""Sliding window attention."""

import math
from collections.abc import Sequence

from torch import Tensor

from acmix.geometry import output_size
from acmix.layout import empty_map, sum_dtype
from acmix.ops.registration import WINDOW, Shape, call, define


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    *,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> Tensor:
    """See ``acmix.sliding_window_attention``."""
    if position is not None:
        # The softmax drops q_p . position_p; what is left of the position is a change of the keys.
        k = k - position
    return call(attention, q, k, v, kernel_size, stride, dilation)[0]


def empty_lse(q: Tensor, size: Sequence[int]) -> Tensor:
    """New log-sum-exp of the logits, (B, N, *size), in the dtype that sums are kept in."""
    return q.new_empty((q.shape[0], q.shape[1], *size), dtype=sum_dtype(q))


def _fake(q, k, v, kernel_size, stride, dilation):
    size = output_size(q.shape[3:], stride)
    return empty_map(q, (*q.shape[:3], *size)), empty_lse(q, size)


def _fake_backward(grad, q, k, v, out, lse, kernel_size, stride, dilation):
    return empty_map(q, q.shape), empty_map(k, k.shape), empty_map(v, v.shape)


def attention_multiply_adds(
    q: Shape, k: Shape, v: Shape, kernel_size: int, stride: int, dilation: int
) -> int:
    """Three for each key and channel: the two products, and the term of the position."""
    return 3 * kernel_size**2 * math.prod(q[:3]) * math.prod(output_size(q[3:], stride))


def _multiply_adds_backward(grad, q, k, v, out, lse, *window):
    return 2 * attention_multiply_adds(q, k, v, *window)


def _setup(ctx, inputs, output):
    *maps, ctx.kernel_size, ctx.stride, ctx.dilation = inputs
    ctx.save_for_backward(*maps, *output)
    # Only the output may be differentiated; the log-sum-exp serves the backward pass.
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    window = (ctx.kernel_size, ctx.stride, ctx.dilation)
    return *attention_backward(grad, *ctx.saved_tensors, *window), None, None, None


attention_backward = define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{WINDOW}) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    multiply_adds=_multiply_adds_backward,
)
attention = define(
    f"attention(Tensor q, Tensor k, Tensor v, {WINDOW}) -> (Tensor, Tensor)",
    _fake,
    _backward,
    _setup,
    multiply_adds=attention_multiply_adds,
)
