"""What every ACmix operator means: slow, complete, obvious, in any floating dtype.

Every fast path is compared with these functions; when the two differ, the fast path is wrong.
Nothing here is written for speed or memory.
"""

import math

import torch
from torch import Tensor

from acmix.geometry import can_reflect, one_hot_shifts


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None = None,
    *,
    kernel_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Attention of each query over a k×k window of keys; see ``acmix.sliding_window_attention``.

    For the output pixel p and the window pixel r::

        logit(p, r) = D^(-1/2) * q_p . (k_r + position_p - position_r)
        out_p = sum_r softmax_r(logit(p, r)) * v_r
    """
    height, width = q.shape[-2:]
    pad = dilation * (kernel_size // 2)
    reflect = can_reflect((height, width), pad)
    if position is None:
        position = q.new_zeros(q.shape[2:])
    ys = torch.arange(0, height, stride, device=q.device)
    xs = torch.arange(0, width, stride, device=q.device)
    query, position_p = _at(q, ys, xs), _at(position, ys, xs)

    logits, values = [], []
    for dy in range(-pad, pad + 1, dilation):
        for dx in range(-pad, pad + 1, dilation):
            row, row_inside = _neighbour(ys + dy, height, reflect)
            col, col_inside = _neighbour(xs + dx, width, reflect)
            outside = ~(row_inside[:, None] & col_inside[None, :])
            key = _at(k, row, col) + position_p - _at(position, row, col)
            # What is outside has no weight, and zero times NaN would be NaN.
            key, value = (x.masked_fill(outside, 0.0) for x in (key, _at(v, row, col)))
            logit = (query * key).sum(dim=2) * q.shape[2] ** -0.5
            logits.append(logit.masked_fill(outside, float("-inf")))
            values.append(value)
    weights = torch.stack(logits).softmax(dim=0)
    return (weights.unsqueeze(3) * torch.stack(values)).sum(dim=0)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Attention inside each window; see ``acmix.window_attention``."""
    logits = torch.einsum("wnqd,wnkd->wnqk", q, k) * q.shape[-1] ** -0.5 + bias
    if mask is not None:
        image_count = q.shape[0] // mask.shape[0]
        logits = logits + mask.unsqueeze(1).repeat(image_count, 1, 1, 1)
    weights = torch.nn.functional.dropout(logits.softmax(dim=-1), dropout).to(v.dtype)
    return torch.einsum("wnqk,wnkd->wnqd", weights, v)


def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None = None,
    *,
    stride: int = 1,
) -> Tensor:
    """Fully connected layer over the maps, then shift and sum; see ``acmix.convolution_path``.

    The shifts are explicit: every kernel tap multiplies a zero-padded, shifted copy of a map.
    """
    batch, channels, height, width = qkv.shape
    taps, map_count = fc_weight.shape
    head_dim = channels // map_count
    if kernels is None:
        kernels = one_hot_shifts(math.isqrt(taps), fc_weight).repeat(head_dim, 1, 1, 1)
    size = kernels.shape[-1]
    maps = qkv.reshape(batch, map_count, head_dim, height, width)
    if taps == 0:
        # The layer is folded into the kernels, and its bias into that of a map of ones.
        ones = maps.new_ones(batch, kernels.shape[1] - map_count, *maps.shape[2:])
        f, taps = torch.cat([maps, ones], dim=1), kernels.shape[1]
    else:
        f = torch.einsum("ij,bjdyx->bidyx", fc_weight, maps)
        if fc_bias is not None:
            f = f + fc_bias.view(taps, 1, 1, 1)
    padded = torch.nn.functional.pad(f, (size // 2,) * 4)

    # kernels: (D * M, taps, size, size), output channel d * M + m.
    per_group = kernels.reshape(head_dim, -1, taps, size, size)
    out = qkv.new_zeros(())
    for dy in range(size):
        for dx in range(size):
            shifted = padded[..., dy : dy + height : stride, dx : dx + width : stride]
            out = out + torch.einsum("dmi,bidyx->bdmyx", per_group[..., dy, dx], shifted)
    return out.flatten(1, 2)


def neighbourhood_aggregation(
    v: Tensor,
    w: Tensor,
    *,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    reflect: bool = True,
) -> Tensor:
    """Sum of the window's values, weighted by pixel; see ``acmix.neighbourhood_aggregation``.

    ``out[b, c, p] = sum_o w[b, c mod Cw, o, p] * v[b, c, stride * p + offset(o)]``
    """
    neighbours = _neighbourhood(v, kernel_size, stride, dilation, reflect)
    weights = w.repeat(1, v.shape[1] // w.shape[1], 1, 1, 1)
    return (weights * neighbours).sum(dim=2)


def neighbourhood_difference(
    a: Tensor,
    b: Tensor,
    *,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    reflect: bool = True,
) -> Tensor:
    """Each pixel minus those around it; see ``acmix.neighbourhood_difference``.

    ``out[b, c, o, p] = a[b, c, stride * p] - b[b, c, stride * p + offset(o)]``
    """
    neighbours = _neighbourhood(b, kernel_size, stride, dilation, reflect)
    return a[:, :, None, ::stride, ::stride] - neighbours


def _neighbourhood(
    x: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """The k² neighbours of every output pixel, (B, C, k², Ho, Wo), zero outside the image."""
    height, width = x.shape[-2:]
    pad = dilation * (kernel_size // 2)
    ys = torch.arange(0, height, stride, device=x.device)
    xs = torch.arange(0, width, stride, device=x.device)
    maps = []
    for dy in range(-pad, pad + 1, dilation):
        for dx in range(-pad, pad + 1, dilation):
            row, row_inside = _neighbour(ys + dy, height, reflect)
            col, col_inside = _neighbour(xs + dx, width, reflect)
            outside = ~(row_inside[:, None] & col_inside[None, :])
            maps.append(_at(x, row, col).masked_fill(outside, 0.0))
    return torch.stack(maps, dim=2)


def _at(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return x[..., rows, :][..., cols]


def _neighbour(index: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Position of each neighbour on the map, and whether it takes part in the softmax."""
    inside = (index >= 0) & (index < size)
    if not reflect:
        return index.clamp(0, size - 1), inside
    index = index.abs()
    index = torch.where(index >= size, 2 * (size - 1) - index, index)
    return index, torch.ones_like(inside)
