"""The compiled joint operator: attention and convolution path on one set of projections."""

from torch import Tensor

from acmix import ops
from acmix.native.convolution import channels_last, convolve, convolve_backward
from acmix.native.windows import attend, attend_backward, computable


def paths_forward(
    qkv: Tensor,
    position: Tensor,
    layer: Tensor | None,
    kernels: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of ``acmix::paths``."""
    maps = _packed(qkv, heads)
    attention, lse = attend(
        *maps.unflatten(1, (3, heads)).unbind(1),
        _position_of_keys(position, maps, heads),
        (kernel_size, stride, dilation),
    )
    results = [attention.flatten(1, 2), convolve(maps, layer, kernels, stride)]
    if not ops.is_channels_last(ops.maps_of(qkv, heads)):
        results = [x.contiguous() for x in results]
    return *(x.to(qkv.dtype) for x in results), lse


def paths_backward(
    grad_attention: Tensor,
    grad_convolution: Tensor,
    qkv: Tensor,
    position: Tensor,
    layer: Tensor | None,
    kernels: Tensor,
    lse: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel of ``acmix::paths_backward``: both paths sum up in one gradient of the projections."""
    maps = _packed(qkv, heads)
    # Queries between the strides have no gradient.
    dmaps = ops.new_map(maps.new_zeros if stride > 1 else maps.new_empty, maps.shape)
    grads = dmaps.unflatten(1, (3, heads)).unbind(1)
    attend_backward(
        computable(grad_attention).unflatten(1, (heads, -1)),
        *maps.unflatten(1, (3, heads)).unbind(1),
        _position_of_keys(position, maps, heads),
        lse,
        (kernel_size, stride, dilation),
        grads,
    )
    # One axis at a time: torch is some twenty times slower on both.
    dkeys = grads[1].permute(0, 3, 4, 1, 2).sum(0).sum(2)
    dposition = dkeys.permute(2, 0, 1).neg().to(position.dtype)
    weights = convolve_backward(
        computable(grad_convolution), maps, layer, kernels, stride, dmaps, add=True
    )
    dqkv = dmaps.flatten(1, 2).to(qkv.dtype)
    if not ops.is_channels_last(ops.maps_of(qkv, heads)):
        dqkv = dqkv.contiguous()
    return dqkv, dposition, *weights


def _packed(qkv: Tensor, heads: int) -> Tensor:
    """All maps, (B, 3N, D, H, W), channels last and in the kernels' dtype."""
    return channels_last(computable(ops.maps_of(qkv, heads)))


def _position_of_keys(position: Tensor, maps: Tensor, heads: int) -> Tensor:
    """(D, H, W) in the shape of the keys."""
    shape = (len(maps), heads, *maps.shape[2:])
    return position.to(maps.dtype).expand(shape)
