"""The convolution path: a layer over the maps, then shift and sum."""

from torch import Tensor

from acmix.geometry import output_size
from acmix.layout import empty_image, empty_map
from acmix.ops.registration import define


def empty_weights(layer: Tensor | None, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """New gradients of the layer (empty without one) and the shift kernels."""
    grad_layer = kernels.new_empty(0) if layer is None else layer.new_empty(layer.shape)
    return grad_layer, kernels.new_empty(kernels.shape)


def _fake(maps, layer, kernels, stride):
    size = output_size(maps.shape[3:], stride)
    return empty_image(maps, (maps.shape[0], kernels.shape[0], *size))


def _fake_backward(grad, maps, layer, kernels, stride):
    return empty_map(maps, maps.shape), *empty_weights(layer, kernels)


def _setup(ctx, inputs, output):
    *tensors, ctx.stride = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    maps, layer, kernels = ctx.saved_tensors
    dmaps, dlayer, dkernels = convolution_backward(grad, maps, layer, kernels, ctx.stride)
    return dmaps, None if layer is None else dlayer, dkernels, None


convolution_backward = define(
    "convolution_backward(Tensor grad, Tensor maps, Tensor? layer, Tensor kernels, int stride) "
    "-> (Tensor, Tensor, Tensor)",
    _fake_backward,
)
convolution = define(
    "convolution(Tensor maps, Tensor? layer, Tensor kernels, int stride) -> Tensor",
    _fake,
    _backward,
    _setup,
)
