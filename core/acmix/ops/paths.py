"""Both paths of ACmix with sliding window attention, on one set of projections."""

from torch import Tensor

from acmix.geometry import output_size
from acmix.layout import empty_image, maps_of
from acmix.ops.attention import attention_multiply_adds, empty_lse
from acmix.ops.convolution import convolution_multiply_adds, empty_weights
from acmix.ops.registration import WINDOW, define


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
    heads = fc_weight.shape[1] // 3
    return paths(qkv, position, fc_weight, kernels, heads, kernel_size, stride, dilation)[:2]


def _fake(qkv, position, layer, kernels, heads, kernel_size, stride, dilation):
    maps = maps_of(qkv, heads)
    size = output_size(qkv.shape[2:], stride)
    attention, convolution = (
        empty_image(maps, (qkv.shape[0], channels, *size))
        for channels in (qkv.shape[1] // 3, kernels.shape[0])
    )
    return attention, convolution, empty_lse(maps[:, :heads], size)


def _fake_backward(
    grad_attention, grad_convolution, qkv, position, layer, kernels, lse, heads, *window
):
    dqkv = empty_image(maps_of(qkv, heads), qkv.shape)
    return dqkv, position.new_empty(position.shape), *empty_weights(layer, kernels)


def paths_multiply_adds(qkv, position, layer, kernels, heads, *window):
    """Those of both paths."""
    maps = (qkv[0], 3 * heads, qkv[1] // (3 * heads), *qkv[2:])
    q = k = v = (qkv[0], heads, *maps[2:])
    attention = attention_multiply_adds(q, k, v, *window)
    return attention + convolution_multiply_adds(maps, layer, kernels, window[1])


def _multiply_adds_backward(
    grad_attention, grad_convolution, qkv, position, layer, kernels, lse, *settings
):
    return 2 * paths_multiply_adds(qkv, position, layer, kernels, *settings)


def _setup(ctx, inputs, output):
    *tensors, ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_attention, grad_convolution, _):
    window = (ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation)
    grads = paths_backward(grad_attention, grad_convolution, *ctx.saved_tensors, *window)
    return *grads, None, None, None, None


paths_backward = define(
    "paths_backward(Tensor grad_attention, Tensor grad_convolution, Tensor qkv, Tensor position, "
    f"Tensor layer, Tensor kernels, Tensor lse, int heads, {WINDOW}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    multiply_adds=_multiply_adds_backward,
)
paths = define(
    "paths(Tensor qkv, Tensor position, Tensor layer, Tensor kernels, int heads, "
    f"{WINDOW}) -> (Tensor, Tensor, Tensor)",
    _fake,
    _backward,
    _setup,
    multiply_adds=paths_multiply_adds,
)
