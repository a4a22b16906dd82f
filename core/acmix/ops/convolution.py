"""The convolution path: a layer over the maps, then shift and sum."""

import math

import torch
from torch import Tensor

from acmix.geometry import one_hot_shifts, output_size
from acmix.layout import empty_image, empty_map
from acmix.ops.registration import Shape, call, define


def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    *,
    stride: int,
) -> Tensor:
    """See ``acmix.convolution_path``."""
    return split_convolution_path(qkv, None, fc_weight, kernels, fc_bias, stride=stride)


def split_convolution_path(
    qkv: Tensor,
    rest: Tensor | None,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    *,
    stride: int,
) -> Tensor:
    """The same, of maps that are split over two tensors."""
    taps, count = fc_weight.shape
    head_dim = (qkv.shape[1] + (0 if rest is None else rest.shape[1])) // count
    if kernels is None:
        shifts = one_hot_shifts(math.isqrt(taps), like=fc_weight)
        kernels = shifts.expand(head_dim, *shifts.shape[-3:])
    if fc_bias is not None:
        # A map of ones carries the bias, and the padding that comes after the layer cuts it off.
        fc_weight = torch.cat([fc_weight, fc_bias[:, None]], dim=1)
    maps = qkv.unflatten(1, (-1, head_dim))
    others = None if rest is None else rest.unflatten(1, (-1, head_dim))
    return call(convolution, maps, others, fc_weight, kernels, stride)


def empty_weights(layer: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """New gradients of the layer and the shift kernels."""
    return layer.new_empty(layer.shape), kernels.new_empty(kernels.shape)


def _fake(maps, rest, layer, kernels, stride):
    size = output_size(maps.shape[3:], stride)
    return empty_image(maps, (maps.shape[0], kernels.shape[0], *size))


def _fake_backward(grad, maps, rest, layer, kernels, stride):
    drest = None if rest is None else empty_map(rest, rest.shape)
    return empty_map(maps, maps.shape), drest, *empty_weights(layer, kernels)


def convolution_multiply_adds(maps: Shape, layer: Shape, kernels: Shape, stride: int) -> int:
    """The layer at every pixel, the shifts at every output; a bias has none."""
    pixels, outputs = math.prod(maps[3:]), math.prod(output_size(maps[3:], stride))
    return maps[0] * (layer[0] * math.prod(maps[1:3]) * pixels + math.prod(kernels) * outputs)


def _multiply_adds(maps, rest, *args):
    count = maps[1] + (0 if rest is None else rest[1])
    return convolution_multiply_adds((maps[0], count, *maps[2:]), *args)


def _multiply_adds_backward(grad, *args):
    return 2 * _multiply_adds(*args)


def _setup(ctx, inputs, output):
    *tensors, ctx.stride = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return *convolution_backward(grad, *ctx.saved_tensors, ctx.stride), None


convolution_backward = define(
    "convolution_backward(Tensor grad, Tensor maps, Tensor? rest, Tensor layer, Tensor kernels, "
    "int stride) -> (Tensor, Tensor?, Tensor, Tensor)",
    _fake_backward,
    multiply_adds=_multiply_adds_backward,
)
convolution = define(
    "convolution(Tensor maps, Tensor? rest, Tensor layer, Tensor kernels, int stride) -> Tensor",
    _fake,
    _backward,
    _setup,
    multiply_adds=_multiply_adds,
)
