"""CPU kernels of both paths on one set of projections: attention and convolution path."""

from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.backends.cpu.attention import attend, attend_backward
from acmix.backends.cpu.convolution import convolve, convolve_backward
from acmix.backends.cpu.maps import Maps
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
from acmix.ops.paths import sliding_window_paths
from acmix.ops.registration import kernel

__all__ = ["sliding_window_paths"]


@kernel(ops.paths, "CPU")
def _forward(
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    like = maps_of(qkv, heads)
    maps = readable(channels_last(like))
    q, k, v = (Maps.part_of(maps, index, 3) for index in range(3))
    batch, channels = qkv.shape[:2]
    size = output_size(qkv.shape[2:], stride)
    attention, convolution = (
        new_image((batch, count, *size), maps.dtype) for count in (channels // 3, len(kernels))
    )
    lse = maps.new_empty((batch, heads, *size), dtype=sum_dtype(maps))
    window = kernel_size, stride, dilation
    out = Maps.of_image(attention, heads)
    attending = attend((q, k, v), _position_of_keys(position, maps, heads), window, out, lse)
    convolving = convolve(maps, layer, kernels, stride, convolution)
    # Small maps have few units of work for the threads to share, and waking threads costs as much.
    library.load().run_paths(attending, convolving)
    return in_format_of(like, attention), in_format_of(like, convolution), lse


@kernel(ops.paths_backward, "CPU")
def _backward(
    grad_attention: Tensor,
    grad_convolution: Tensor,
    qkv: Tensor,
    position: Tensor,
    layer: Tensor,
    kernels: Tensor,
    lse: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both paths sum up in one gradient of the projections."""
    maps = channels_last(computable(maps_of(qkv, heads)))
    dmaps = new_map(maps.new_empty, maps.shape)
    grads = dmaps.unflatten(1, (3, heads)).unbind(1)
    attend_backward(
        computable(grad_attention).unflatten(1, (heads, -1)),
        maps.unflatten(1, (3, heads)).unbind(1),
        _position_of_keys(position, maps, heads),
        lse,
        (kernel_size, stride, dilation),
        grads,
    )
    # One axis at a time: torch is some twenty times slower on both.
    dkeys = grads[1].permute(0, 3, 4, 1, 2).sum(0).sum(2)
    dposition = dkeys.permute(2, 0, 1).neg().to(position.dtype).contiguous()
    weights = convolve_backward(
        computable(grad_convolution), maps, layer, kernels, stride, dmaps, add=True
    )
    return in_format_of(maps_of(qkv, heads), dmaps.flatten(1, 2)), dposition, *weights


def _position_of_keys(position: Tensor, maps: Tensor, heads: int) -> Maps:
    """(D, H, W) in the shape of the keys."""
    position = position.to(sum_dtype(maps))
    return Maps(position, (len(maps), heads, *maps.shape[2:]), (0, 0, *position.stride()))
