"""Checks of the operators' arguments, by operator: once a signature of them."""

import math

from torch import Tensor

from acmix.backends.folding import MAX_FOLDED_MAPS
from acmix.checks import (
    agree,
    check_odd,
    check_positive,
    check_rank,
    check_same_device,
    check_same_kind,
    check_shape,
    divides,
    has_shape,
    not_empty,
    once_a_signature,
    require,
)
from acmix.geometry import output_size
from acmix.tracing import as_number


@once_a_signature
def check_image(x: Tensor, channels: int) -> None:
    """Those of the input of a layer on images."""
    fits = has_shape(x, None, channels, None, None) and not_empty(*x.shape[-2:])
    require(fits, "input shape", tuple(x.shape), "give (B, {}, H, W)", channels)


@once_a_signature
def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> None:
    """Those of ``acmix.sliding_window_attention``."""
    _check_projections(q, k, v, "B", "N", "D", "H", "W")
    if position is not None:
        check_shape("position", position, q.shape[2:])
        check_same_kind(q=q, position=position)
    _check_window(kernel_size, stride, dilation)


@once_a_signature
def check_map_windows(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, window_size: tuple[int, int]
) -> None:
    """Those of ``acmix.map_window_attention``."""
    check_rank("qkv", qkv, "B", "H", "W", "3N * D")
    for side, length in zip(window_size, qkv.shape[1:3], strict=True):
        check_positive("window_size", side)
        remedy = "must divide the height and the width of the map, {}"
        require(divides(side, length), "window_size", window_size, remedy, length)
    check_rank("bias", bias, "N", "L", "L")
    pixels = math.prod(window_size)
    heads = as_number(bias.shape[0])
    check_shape("bias", bias, (heads, pixels, pixels))
    fits = divides(3 * heads, qkv.shape[3])
    require(fits, "qkv.shape", tuple(qkv.shape), "give (B, H, W, 3 * N * D), N={}", heads)
    if mask is not None:
        height, width = qkv.shape[1:3]
        windows = (height // window_size[0]) * (width // window_size[1])
        check_shape("mask", mask, (windows, pixels, pixels))
    # Weights may have another dtype than the maps.
    _check_kinds(True, qkv=qkv, bias=bias, mask=mask)


@once_a_signature
def check_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> None:
    """Those of ``acmix.window_attention``."""
    _check_projections(q, k, v, "B * nW", "N", "L", "D")
    _, heads, length, _ = q.shape
    check_shape("bias", bias, (heads, length, length))
    if mask is not None:
        fits = has_shape(mask, None, length, length) and divides(mask.shape[0], q.shape[0])
        remedy = "give (nW, {0}, {0}), nW windows an image"
        require(fits, "mask", tuple(mask.shape), remedy, length)


@once_a_signature
def check_convolution(
    qkv: Tensor,
    rest: Tensor | None,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    stride: int,
    mixed: bool,
) -> None:
    """Those of ``acmix.convolution_path``."""
    head_dim = _head_dim(qkv, fc_weight, rest)
    taps = as_number(fc_weight.shape[0])
    if kernels is None:
        check_odd("square root of the taps", math.isqrt(taps))
        require(math.isqrt(taps) ** 2 == taps, "taps", taps, "give a square number of them")
    else:
        _check_kernels(kernels, _inputs(fc_weight, fc_bias), head_dim)
    check_positive("stride", stride)
    if fc_bias is not None:
        check_shape("fc_bias", fc_bias, (taps,))
    _check_kinds(mixed, qkv=qkv, fc_weight=fc_weight, kernels=kernels, fc_bias=fc_bias)


@once_a_signature
def check_paths(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    mixed: bool,
) -> None:
    """Those of ``acmix.sliding_window_paths``."""
    head_dim = _head_dim(qkv, fc_weight)
    maps = as_number(fc_weight.shape[1])
    require(divides(3, maps), "fc_weight.shape", tuple(fc_weight.shape), "give it as (taps, 3N)")
    check_shape("position", position, (head_dim, *qkv.shape[2:]))
    check_same_kind(qkv=qkv, position=position)
    _check_kernels(kernels, _inputs(fc_weight, None), head_dim)
    _check_kinds(mixed, qkv=qkv, fc_weight=fc_weight, kernels=kernels)
    _check_window(kernel_size, stride, dilation)


@once_a_signature
def check_mix(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    offset: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    mixed: bool,
) -> None:
    """Those of ``acmix.mixed_paths``."""
    check_paths(qkv, position, fc_weight, kernels, kernel_size, stride, dilation, mixed)
    channels = qkv.shape[1] // 3
    fits = agree(kernels.shape[0], channels)
    require(fits, "kernels", tuple(kernels.shape), "give {} of them, (N * D)", channels)
    by_channel = (kernels.shape[0], 1, 1)
    if alpha is not None and not has_shape(alpha, 1):
        check_shape("alpha", alpha, by_channel)
    if beta is not None:
        check_shape("beta", beta, (1,))
    if offset is not None:
        check_shape("offset", offset, by_channel)
    _check_kinds(mixed, qkv=qkv, alpha=alpha, beta=beta, offset=offset)


def _check_kinds(mixed: bool, **tensors: Tensor | None) -> None:
    """Of one device, and of one dtype unless weights may have another than the maps."""
    check = check_same_device if mixed else check_same_kind
    check(**{name: x for name, x in tensors.items() if x is not None})


@once_a_signature
def check_aggregation(v: Tensor, w: Tensor, kernel_size: int, stride: int, dilation: int) -> None:
    """Those of ``acmix.neighbourhood_aggregation``."""
    check_rank("v", v, "B", "C", "H", "W")
    _check_window(kernel_size, stride, dilation)
    out_size = output_size(v.shape[2:], stride)
    fits = has_shape(w, v.shape[0], None, kernel_size**2, *out_size)
    fits = fits and divides(w.shape[1], v.shape[1])
    remedy = "give ({}, a divisor of {}, {}, {}, {})"
    sizes = (*v.shape[:2], kernel_size**2, *out_size)
    require(fits, "w.shape", tuple(w.shape), remedy, *sizes)
    check_same_kind(v=v, w=w)


@once_a_signature
def check_difference(a: Tensor, b: Tensor, kernel_size: int, stride: int, dilation: int) -> None:
    """Those of ``acmix.neighbourhood_difference``."""
    check_rank("a", a, "B", "C", "H", "W")
    check_shape("b", b, a.shape)
    check_same_kind(a=a, b=b)
    _check_window(kernel_size, stride, dilation)


def _check_projections(q: Tensor, k: Tensor, v: Tensor, *axes: str) -> None:
    check_rank("q", q, *axes)
    check_shape("k", k, q.shape)
    check_shape("v", v, q.shape)
    check_same_kind(q=q, k=k, v=v)


def _head_dim(qkv: Tensor, fc_weight: Tensor, rest: Tensor | None = None) -> int:
    """Width D of a map, once the projections fit the layer over the maps."""
    check_rank("qkv", qkv, "B", "3N * D", "H", "W")
    check_rank("fc_weight", fc_weight, "taps", "3N")
    channels, maps = as_number(qkv.shape[1]), as_number(fc_weight.shape[1])
    if rest is not None:
        check_rank("rest", rest, "B", "m * D", "H", "W")
        check_shape("rest", rest, (qkv.shape[0], rest.shape[1], *qkv.shape[2:]))
        check_same_kind(qkv=qkv, rest=rest)
        channels += as_number(rest.shape[1])
    fits = divides(maps, channels)
    require(fits, "qkv.shape", tuple(qkv.shape), "give (B, {0} * D, H, W) for {0} maps", maps)
    if rest is not None:
        fits = divides(channels // maps, rest.shape[1])
        require(fits, "rest.shape", tuple(rest.shape), "give (B, m * {}, H, W)", channels // maps)
    return channels // maps


def _inputs(fc_weight: Tensor, fc_bias: Tensor | None) -> int:
    """Maps that the kernels read: the taps of the layer, or its inputs where it is folded."""
    taps, maps = map(as_number, fc_weight.shape)
    if taps > 0:
        return taps
    remedy = f"a layer over more than {MAX_FOLDED_MAPS} maps stays a layer"
    require(maps <= MAX_FOLDED_MAPS, "fc_weight.shape", tuple(fc_weight.shape), remedy)
    return maps + (fc_bias is not None)


def _check_kernels(kernels: Tensor, taps: int, head_dim: int) -> None:
    fits = has_shape(kernels, None, taps, None, None) and divides(head_dim, kernels.shape[0])
    fits = fits and agree(kernels.shape[2], kernels.shape[3])
    remedy = "give (a multiple of {}, {}, k_c, k_c)"
    require(fits, "kernels.shape", tuple(kernels.shape), remedy, head_dim, taps)
    check_odd("kernels.shape[-1]", as_number(kernels.shape[-1]))


def _check_window(kernel_size: int, stride: int, dilation: int) -> None:
    check_odd("kernel_size", kernel_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
