"""Both paths of ACmix with sliding window attention, on one set of projections, and their sum."""

from torch import Tensor

from acmix.geometry import output_size
from acmix.layout import empty_image, maps_of
from acmix.ops.attention import empty_lse
from acmix.ops.convolution import empty_weights
from acmix.ops.paths import paths_multiply_adds
from acmix.ops.registration import WINDOW, call, define


def mixed_paths(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    offset: Tensor | None,
    *,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> Tensor:
    """See ``acmix.mixed_paths``."""
    heads = fc_weight.shape[1] // 3
    tensors = (qkv, position, fc_weight, kernels, alpha, beta, offset)
    return call(mixed, *tensors, heads, kernel_size, stride, dilation)[0]


def _fake(qkv, position, layer, kernels, alpha, beta, offset, heads, kernel_size, stride, dilation):
    maps, size = maps_of(qkv, heads), output_size(qkv.shape[2:], stride)
    out = empty_image(maps, (qkv.shape[0], kernels.shape[0], *size))
    return out, empty_lse(maps[:, :heads], size)


def _fake_backward(grad, qkv, position, layer, kernels, alpha, beta, lse, heads, *window):
    dqkv = empty_image(maps_of(qkv, heads), qkv.shape)
    weights = empty_weights(layer, kernels)
    factors = (None if x is None else x.new_empty(x.shape) for x in (alpha, beta))
    return dqkv, position.new_empty(position.shape), *weights, *factors


def _multiply_adds(qkv, position, layer, kernels, alpha, beta, offset, heads, *window):
    return paths_multiply_adds(qkv, position, layer, kernels, heads, *window)


def _multiply_adds_backward(grad, *args):
    return 2 * _multiply_adds(*args)


def _setup(ctx, inputs, output):
    *tensors, ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation = inputs
    *tensors, alpha, beta, offset = tensors
    ctx.offset = None if offset is None else (offset.dtype, offset.shape)
    if alpha is not None and alpha.numel() > 1:
        raise NotImplementedError(
            f"alpha of {alpha.numel()} numbers has no gradient in acmix::mixed: use "
            "acmix.mixed_paths, which takes the operators of the paths apart"
        )
    ctx.save_for_backward(*tensors, alpha, beta, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    window = (ctx.heads, ctx.kernel_size, ctx.stride, ctx.dilation)
    grads = mixed_backward(grad, *ctx.saved_tensors, *window)
    doffset = None
    if ctx.offset is not None:
        dtype, shape = ctx.offset
        doffset = grad.sum((0, 2, 3)).to(dtype).view(shape)
    return *grads, doffset, None, None, None, None


mixed_backward = define(
    "mixed_backward(Tensor grad, Tensor qkv, Tensor position, Tensor layer, Tensor kernels, "
    f"Tensor? alpha, Tensor? beta, Tensor lse, int heads, {WINDOW}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor?, Tensor?)",
    _fake_backward,
    multiply_adds=_multiply_adds_backward,
)
mixed = define(
    "mixed(Tensor qkv, Tensor position, Tensor layer, Tensor kernels, Tensor? alpha, "
    f"Tensor? beta, Tensor? offset, int heads, {WINDOW}) -> (Tensor, Tensor)",
    _fake,
    _backward,
    _setup,
    multiply_adds=_multiply_adds,
)
