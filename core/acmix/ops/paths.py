"""Both paths of ACmix with sliding window attention, on one set of projections."""

from acmix.geometry import output_size
from acmix.layout import empty_image, maps_of
from acmix.ops.attention import empty_lse
from acmix.ops.convolution import empty_weights
from acmix.ops.registration import WINDOW, define


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


def _setup(ctx, inputs, output):
    *tensors, ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_attention, grad_convolution, _):
    # Read once: activation checkpointing computes saved tensors again for every reading.
    saved = ctx.saved_tensors
    window = (ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation)
    dqkv, dposition, dlayer, dkernels = paths_backward(
        grad_attention, grad_convolution, *saved, *window
    )
    if saved[2] is None:
        dlayer = None
    return dqkv, dposition, dlayer, dkernels, None, None, None, None


paths_backward = define(
    "paths_backward(Tensor grad_attention, Tensor grad_convolution, Tensor qkv, Tensor position, "
    f"Tensor? layer, Tensor kernels, Tensor lse, int heads, {WINDOW}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)
paths = define(
    "paths(Tensor qkv, Tensor position, Tensor? layer, Tensor kernels, int heads, "
    f"{WINDOW}) -> (Tensor, Tensor, Tensor)",
    _fake,
    _backward,
    _setup,
)
