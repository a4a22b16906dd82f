"""CPU kernels of both paths on one set of projections, and of their sum."""

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.cpu.attention import attend, attend_backward
from acmix.backends.cpu.convolution import (
    convolve,
    convolve_backward,
    read_weights,
    readable_kernels,
)
from acmix.backends.cpu.maps import Maps
from acmix.backends.cpu.plans import Given, Plan, Plans
from acmix.geometry import output_size
from acmix.layout import (
    channels_last,
    computable,
    in_format_of,
    maps_of,
    new_image,
    new_map,
    readable,
    sum_dtype,
)
from acmix.ops.mixing import mixed_paths
from acmix.ops.registration import kernel

__all__ = ["mixed_paths"]


@kernel(ops.mixed, "CPU")
def _forward(
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    offset: Tensor | None,
    *settings: int,
) -> tuple[Tensor, Tensor]:
    given = [qkv, position, layer, kernels, alpha, beta, offset]
    out, lse, _ = _plans.run(given, settings)
    return out, lse


def _converted(
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    offset: Tensor | None,
    heads: int,
    *window: int,
) -> tuple[Tensor, Given]:
    like = maps_of(qkv, heads)
    maps = readable(channels_last(like))
    # As it was where nothing had to be done.
    x = qkv if maps is like else maps.flatten(1, 2)
    factors = [None if f is None else f.contiguous() for f in (alpha, beta, offset)]
    weights = [position, layer.contiguous(), readable_kernels(kernels), *factors]
    return like, [x, *(None if w is None else w.to(sum_dtype(x)) for w in weights)]


def _plan(
    x: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    offset: Tensor | None,
    heads: int,
    *window: int,
) -> Plan:
    kernel_size, stride, dilation = window
    size = output_size(x.shape[2:], stride)
    maps = Maps.of_image(x, 3 * heads)
    q, k, v = maps.parts(3)
    out = new_image((len(x), len(kernels), *size), x.dtype)
    lse = torch.empty((len(x), heads, *size), dtype=position.dtype)
    apart, weights, folding = read_weights((maps, None), layer, kernels, beta)
    mix = dict(
        alpha=None if alpha is None else Maps.of_channels(alpha, q),
        offset=None if offset is None else Maps.of_channels(offset, q),
    )
    around, image = Maps.of_pixels(position, k), Maps.of_image(out, heads)
    calls = dict(
        folding=folding,
        convolution=convolve((maps, None), apart, weights, stride, out),
        attention=attend((q, k, v), around, (kernel_size, stride, dilation), image, lse, mix),
    )
    given = [x, position, layer, kernels, alpha, beta, offset]
    return Plan.of(calls, given, [out, lse, weights])


_plans = Plans(_converted, _plan)


@kernel(ops.mixed_backward, "CPU")
def _backward(
    grad: Tensor,
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    lse: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor | None, ...]:
    """Both paths sum up in one gradient of the projections."""
    maps = channels_last(computable(maps_of(qkv, heads)))
    dmaps = new_map(maps.new_empty, maps.shape)
    grads = dmaps.unflatten(1, (3, heads)).unbind(1)
    grad, q = computable(grad), Maps.of_image(maps.flatten(1, 2), 3 * heads).parts(3)[0]
    mix: dict[str, Tensor | Maps] = {}
    if alpha is not None:
        dalphas = lse.new_empty(lse.shape[:2])
        mix = dict(alpha=Maps.of_channels(alpha.to(lse.dtype), q), grad_alpha=dalphas)
    attend_backward(
        grad.unflatten(1, (heads, -1)),
        maps.unflatten(1, (3, heads)).unbind(1),
        Maps.of_pixels(position.to(lse.dtype), q),
        lse,
        (kernel_size, stride, dilation),
        grads,
        mix,
    )
    # One axis at a time: torch is some twenty times slower on both.
    dkeys = grads[1].permute(0, 3, 4, 1, 2).sum(0).sum(2)
    dposition = dkeys.permute(2, 0, 1).neg().to(position.dtype).contiguous()
    parts = (maps, None), layer, kernels, stride, (dmaps, None)
    weights = convolve_backward(grad, *parts, beta, add=True)
    dalpha = None
    if alpha is not None:
        dalpha = dalphas.sum(dtype=torch.float64).to(alpha.dtype).view(alpha.shape)
    dqkv = in_format_of(maps_of(qkv, heads), dmaps.flatten(1, 2))
    return dqkv, dposition, *weights[:2], dalpha, weights[2]
