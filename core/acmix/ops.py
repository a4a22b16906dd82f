"""The compiled kernels as torch operators: schema, shapes, gradients.

Imports torch only. The kernels themselves are found at the first call: on the CPU in
``acmix.native.kernels``, on CUDA in ``acmix.backends.cuda_backend``; both have a function for
each operator with the operator's arguments, the convolution path on the CPU only. Equations
are in ``acmix.functional``; argument checks too, so call these operators through it.

All operators return fresh memory and have first derivatives only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from acmix.geometry import output_size

_WINDOW = "int kernel_size, int stride, int dilation"

_library = torch.library.Library("acmix", "DEF")
for _schema in (
    f"sliding_window_attention(Tensor q, Tensor k, Tensor v, {_WINDOW}) -> (Tensor, Tensor)",
    "sliding_window_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, "
    f"Tensor lse, {_WINDOW}) -> (Tensor, Tensor, Tensor)",
    f"aggregation(Tensor v, Tensor w, {_WINDOW}, bool reflect) -> Tensor",
    f"aggregation_backward(Tensor grad, Tensor v, Tensor w, {_WINDOW}, bool reflect) "
    "-> (Tensor, Tensor)",
    f"subtraction(Tensor a, Tensor b, {_WINDOW}, bool reflect) -> Tensor",
    f"subtraction_backward(Tensor grad, Tensor a, Tensor b, {_WINDOW}, bool reflect) "
    "-> (Tensor, Tensor)",
    "convolution(Tensor maps, Tensor? layer, Tensor kernels, int stride) -> Tensor",
    "convolution_backward(Tensor grad, Tensor maps, Tensor? layer, Tensor kernels, int stride) "
    "-> (Tensor, Tensor, Tensor)",
    "paths(Tensor qkv, Tensor position, Tensor? layer, Tensor kernels, int heads, "
    f"{_WINDOW}) -> (Tensor, Tensor, Tensor)",
    "paths_backward(Tensor grad_attention, Tensor grad_convolution, Tensor qkv, Tensor position, "
    f"Tensor? layer, Tensor kernels, Tensor lse, int heads, {_WINDOW}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

sliding_window_attention = torch.ops.acmix.sliding_window_attention.default
sliding_window_attention_backward = torch.ops.acmix.sliding_window_attention_backward.default
aggregation = torch.ops.acmix.aggregation.default
aggregation_backward = torch.ops.acmix.aggregation_backward.default
subtraction = torch.ops.acmix.subtraction.default
subtraction_backward = torch.ops.acmix.subtraction_backward.default
convolution = torch.ops.acmix.convolution.default
convolution_backward = torch.ops.acmix.convolution_backward.default
paths = torch.ops.acmix.paths.default
paths_backward = torch.ops.acmix.paths_backward.default

_KERNELS = {
    "sliding_window_attention": "attention_forward",
    "sliding_window_attention_backward": "attention_backward",
    "aggregation": "aggregation_forward",
    "aggregation_backward": "aggregation_backward",
    "subtraction": "subtraction_forward",
    "subtraction_backward": "subtraction_backward",
    "convolution": "convolution_forward",
    "convolution_backward": "convolution_backward",
    "paths": "paths_forward",
    "paths_backward": "paths_backward",
}
_CPU_ONLY = ("convolution", "convolution_backward", "paths", "paths_backward")


def is_channels_last(x: Tensor) -> bool:
    """Whether kernels write their results for maps like ``x``, (B, N, D, H, W), channels last.

    CUDA kernels write channels first only.
    """
    strides = x.stride()
    return x.device.type == "cpu" and x.shape[2] > 1 and strides[2] == 1 and strides[4] != 1


def empty_map(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """New (B, N, D, H, W) in the memory format of ``like``: channels last if that is."""
    return new_map(like.new_empty, shape) if is_channels_last(like) else like.new_empty(shape)


def new_map(new: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    """(B, N, D, H, W) stored channels last, from a function that makes a tensor of a shape."""
    batch, heads, depth, height, width = shape
    return new((batch, height, width, heads, depth)).permute(0, 3, 4, 1, 2)


def maps_of(qkv: Tensor, heads: int) -> Tensor:
    """Projections (B, 3N * D, H, W) as (B, 3N, D, H, W)."""
    return qkv.unflatten(1, (3 * heads, -1))


def _empty_image(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """New (B, C, H, W) in the memory format of the maps ``like``, (B, N, D, H, W)."""
    last = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=last)


def empty_lse(q: Tensor, out_h: int, out_w: int) -> Tensor:
    """New log-sum-exp of the logits, (B, N, out_h, out_w), in the dtype that sums are kept in."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((q.shape[0], q.shape[1], out_h, out_w), dtype=dtype)


def _cpu(name: str) -> Callable:
    def run(*arguments):
        from acmix.native import kernels

        return getattr(kernels, name)(*arguments)

    return run


def _cuda(name: str) -> Callable:
    def run(*arguments):
        from acmix.backends import cuda_backend

        results = getattr(cuda_backend, name)(*arguments)
        if isinstance(results, Tensor):
            return results.contiguous()
        return tuple(result.contiguous() for result in results)

    return run


for _op, _kernel in _KERNELS.items():
    _library.impl(_op, _cpu(_kernel), "CPU")
    if _op not in _CPU_ONLY:
        _library.impl(_op, _cuda(_kernel), "CUDA")


def _attention_fake(q, k, v, kernel_size, stride, dilation):
    out_h, out_w = output_size(q.shape[3], q.shape[4], stride)
    return empty_map(q, (*q.shape[:3], out_h, out_w)), empty_lse(q, out_h, out_w)


def _attention_backward_fake(grad, q, k, v, out, lse, kernel_size, stride, dilation):
    return empty_map(q, q.shape), empty_map(k, k.shape), empty_map(v, v.shape)


def _aggregation_fake(v, w, kernel_size, stride, dilation, reflect):
    return v.new_empty((*v.shape[:2], *output_size(v.shape[2], v.shape[3], stride)))


def _aggregation_backward_fake(grad, v, w, kernel_size, stride, dilation, reflect):
    return v.new_empty(v.shape), w.new_empty(w.shape)


def _subtraction_fake(a, b, kernel_size, stride, dilation, reflect):
    size = output_size(a.shape[2], a.shape[3], stride)
    return a.new_empty((*a.shape[:2], kernel_size**2, *size))


def _subtraction_backward_fake(grad, a, b, kernel_size, stride, dilation, reflect):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _convolution_fake(maps, layer, kernels, stride):
    shape = (maps.shape[0], kernels.shape[0], *output_size(maps.shape[3], maps.shape[4], stride))
    return _empty_image(maps, shape)


def _convolution_backward_fake(grad, maps, layer, kernels, stride):
    return empty_map(maps, maps.shape), *_empty_weights(layer, kernels)


def _empty_weights(layer, kernels):
    grad_layer = kernels.new_empty(0) if layer is None else layer.new_empty(layer.shape)
    return grad_layer, kernels.new_empty(kernels.shape)


def _paths_fake(qkv, position, layer, kernels, heads, kernel_size, stride, dilation):
    maps = maps_of(qkv, heads)
    size = output_size(qkv.shape[2], qkv.shape[3], stride)
    attention, convolution = (
        _empty_image(maps, (qkv.shape[0], channels, *size))
        for channels in (qkv.shape[1] // 3, kernels.shape[0])
    )
    return attention, convolution, empty_lse(maps[:, :heads], *size)


def _paths_backward_fake(
    grad_attention,
    grad_convolution,
    qkv,
    position,
    layer,
    kernels,
    lse,
    heads,
    kernel_size,
    stride,
    dilation,
):
    dqkv = _empty_image(maps_of(qkv, heads), qkv.shape)
    return dqkv, position.new_empty(position.shape), *_empty_weights(layer, kernels)


def _attention_setup(ctx, inputs, output):
    *maps, ctx.kernel_size, ctx.stride, ctx.dilation = inputs
    ctx.save_for_backward(*maps, *output)
    # Only the output may be differentiated; the log-sum-exp serves the backward pass.
    ctx.mark_non_differentiable(output[1])


def _attention_autograd(ctx, grad, _):
    window = (ctx.kernel_size, ctx.stride, ctx.dilation)
    grads = sliding_window_attention_backward(grad, *ctx.saved_tensors, *window)
    return *grads, None, None, None


def _pair_setup(ctx, inputs, output):
    first, second, *ctx.window = inputs
    ctx.save_for_backward(first, second)


def _aggregation_autograd(ctx, grad):
    grads = aggregation_backward(grad, *ctx.saved_tensors, *ctx.window)
    return *grads, None, None, None, None


def _subtraction_autograd(ctx, grad):
    grads = subtraction_backward(grad, *ctx.saved_tensors, *ctx.window)
    return *grads, None, None, None, None


def _convolution_setup(ctx, inputs, output):
    *tensors, ctx.stride = inputs
    ctx.save_for_backward(*tensors)


def _convolution_autograd(ctx, grad):
    maps, layer, kernels = ctx.saved_tensors
    dmaps, dlayer, dkernels = convolution_backward(grad, maps, layer, kernels, ctx.stride)
    return dmaps, None if layer is None else dlayer, dkernels, None


def _paths_setup(ctx, inputs, output):
    *tensors, ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _paths_autograd(ctx, grad_attention, grad_convolution, _):
    window = (ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation)
    grads = paths_backward(grad_attention, grad_convolution, *ctx.saved_tensors, *window)
    dqkv, dposition, dlayer, dkernels = grads
    has_layer = ctx.saved_tensors[2] is not None
    return dqkv, dposition, dlayer if has_layer else None, dkernels, None, None, None, None


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "acmix kernels have first derivatives only: use backend='torch' or 'reference' to "
        "differentiate a gradient"
    )


_FAKES = {
    "sliding_window_attention": _attention_fake,
    "sliding_window_attention_backward": _attention_backward_fake,
    "aggregation": _aggregation_fake,
    "aggregation_backward": _aggregation_backward_fake,
    "subtraction": _subtraction_fake,
    "subtraction_backward": _subtraction_backward_fake,
    "convolution": _convolution_fake,
    "convolution_backward": _convolution_backward_fake,
    "paths": _paths_fake,
    "paths_backward": _paths_backward_fake,
}
for _op, _fake in _FAKES.items():
    torch.library.register_fake(f"acmix::{_op}", _fake, lib=_library)
    if _op.endswith("_backward"):
        torch.library.register_autograd(f"acmix::{_op}", _no_second_derivative, lib=_library)
for _op, _backward, _setup in (
    ("sliding_window_attention", _attention_autograd, _attention_setup),
    ("aggregation", _aggregation_autograd, _pair_setup),
    ("subtraction", _subtraction_autograd, _pair_setup),
    ("convolution", _convolution_autograd, _convolution_setup),
    ("paths", _paths_autograd, _paths_setup),
):
    torch.library.register_autograd(f"acmix::{_op}", _backward, setup_context=_setup, lib=_library)
