"""Sliding window attention and attention inside windows, in plain torch.

The sliding window runs as dense attention of small query tiles over their halo of keys, so the
work is done by torch's fused attention. A tile of T×T queries reads (T + k - 1)² keys: about four
times the keys for the tiles below, instead of k² = 49 times. Measured on two AVX-512 cores
(batch 4, 64 channels, 56², k = 7): 10 ms against 219 ms for the unfold algorithm.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.backends.derivatives import is_transformed
from acmix.backends.torch import any_size, by_row
from acmix.geometry import can_reflect, ceil_div, output_size, usable_window
from acmix.tracing import is_known

# Larger tiles waste matrix work on masked keys, smaller ones copy more halo; 7 and 8 were the
# fastest of 4, 7, 8 and 14 at every stage of ResNet-ACmix.
_MAX_TILE = 8


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    *,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> Tensor:
    """See ``acmix.sliding_window_attention``."""
    if position is not None:
        # q_p . position_p is the same for every key of p, so the softmax drops it, and
        # position_r belongs to the key alone: the position term is a change of the keys.
        k = k - position
    window = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    if not is_known(*q.shape[-2:]):
        return any_size.sliding_window_attention(q, k, v, **window)
    out = _in_tiles(q, k, v, **window)
    return by_row.sliding_window_attention(q, k, v, **window) if by_row.is_needed(out) else out


def _in_tiles(
    q: Tensor, k: Tensor, v: Tensor, *, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """See ``acmix.sliding_window_attention``; the position is in the keys already."""
    height, width = q.shape[-2:]
    out_h, out_w = output_size((height, width), stride)
    pad = dilation * (kernel_size // 2)
    if can_reflect((height, width), pad):
        inside = None
        k, v = _pad_reflect(k, pad), _pad_reflect(v, pad)
    else:
        kernel_size, stride, dilation = usable_window(
            (height, width), kernel_size, stride, dilation
        )
        pad = dilation * (kernel_size // 2)
        inside = F.pad(q.new_ones(height, width, dtype=torch.bool), (pad,) * 4)
        k, v = F.pad(k, (pad,) * 4), F.pad(v, (pad,) * 4)
    q = q[..., ::stride, ::stride]

    # Queries `phases` apart are a multiple of `dilation` pixels apart and so share one coarse grid
    # of keys; on that grid the window is dense.
    phases = dilation // math.gcd(stride, dilation)
    rows = []
    for y in range(min(phases, out_h)):
        cols = []
        for x in range(min(phases, out_w)):
            grid = (..., slice(y * stride, None, dilation), slice(x * stride, None, dilation))
            cols.append(
                _attend_in_tiles(
                    q[..., y::phases, x::phases],
                    k[grid],
                    v[grid],
                    None if inside is None else inside[grid],
                    kernel_size,
                    phases * stride // dilation,
                )
            )
        rows.append(_interleave(cols, out_w, dim=-1))
    return _interleave(rows, out_h, dim=-2)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, *, dropout: float
) -> Tensor:
    """See ``acmix.window_attention``."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is None:
        logits = _added(logits, bias)
    else:
        # Added up for one image first: the logits of all are what takes long to pass over.
        per_image = logits.unflatten(0, (-1, mask.shape[0]))
        logits = _added(per_image, bias + mask.unsqueeze(1)).flatten(0, 1)
    # A mask or a bias in float32 lifts the logits of a half-precision model to float32.
    return F.dropout(logits.softmax(dim=-1), dropout).to(v.dtype) @ v


def _added(logits: Tensor, bias: Tensor) -> Tensor:
    """``logits + bias``, in the memory of the logits, which nothing else reads, where it may be."""
    # A compiled call chooses its memory itself.
    if torch.compiler.is_compiling() or is_transformed():
        return logits + bias
    fits = torch.result_type(logits, bias) == logits.dtype
    return logits.add_(bias) if fits else logits + bias


def _attend_in_tiles(
    q: Tensor, k: Tensor, v: Tensor, inside: Tensor | None, kernel_size: int, stride: int
) -> Tensor:
    """Window attention on padded keys: query (y, x) sees keys from (y * stride, x * stride) on."""
    batch, heads, head_dim, height, width = q.shape
    rows = _Axis(height, kernel_size, stride)
    cols = _Axis(width, kernel_size, stride)
    q = F.pad(q, (0, cols.padded - width, 0, rows.padded - height))
    q = q.unflatten(-2, (rows.count, rows.tile)).unflatten(-1, (cols.count, cols.tile))
    q = _as_sequences(q.transpose(4, 5))
    k, v = _as_sequences(_halos(k, rows, cols)), _as_sequences(_halos(v, rows, cols))
    mask = _band(rows, q.device)[:, None, :, None] & _band(cols, q.device)[None, :, None, :]
    mask = mask.flatten(0, 1).flatten(1, 2)
    if inside is not None:
        mask = mask & _halos(inside, rows, cols).reshape(q.shape[0], 1, 1, k.shape[2])
        # Queries that only fill up a tile may see no key at all, and an empty softmax is NaN.
        mask = mask | ~mask.any(dim=-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = out.reshape(rows.count, cols.count, batch, heads, rows.tile, cols.tile, head_dim)
    out = out.permute(2, 3, 6, 0, 4, 1, 5).reshape(batch, heads, head_dim, rows.padded, cols.padded)
    return out[..., :height, :width]


class _Axis:
    """How one axis of ``size`` queries is cut into tiles."""

    def __init__(self, size: int, kernel_size: int, stride: int) -> None:
        self.count = ceil_div(size, _MAX_TILE)
        self.tile = ceil_div(size, self.count)
        self.padded = self.count * self.tile
        self.step = self.tile * stride
        self.halo = (self.tile - 1) * stride + kernel_size
        self.keys = (self.padded - 1) * stride + kernel_size
        self.kernel_size, self.stride = kernel_size, stride


def _halos(x: Tensor, rows: _Axis, cols: _Axis) -> Tensor:
    """The keys that each tile sees, (..., rows.count, cols.count, rows.halo, cols.halo), a view."""
    bottom, right = rows.keys - x.shape[-2], cols.keys - x.shape[-1]
    x = F.pad(x, (0, right, 0, bottom))
    return x.unfold(-2, rows.halo, rows.step).unfold(-2, cols.halo, cols.step)


def _as_sequences(x: Tensor) -> Tensor:
    """(B, N, D, rows, cols, h, w) as (rows * cols, B * N, h * w, D): a tile is one sequence."""
    return x.permute(3, 4, 0, 1, 5, 6, 2).flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _band(axis: _Axis, device: torch.device) -> Tensor:
    """Which keys of the halo lie in each query's window, (tile, halo)."""
    query = torch.arange(axis.tile, device=device)[:, None] * axis.stride
    offset = torch.arange(axis.halo, device=device)[None, :] - query
    return (offset >= 0) & (offset < axis.kernel_size)


def _pad_reflect(x: Tensor, pad: int) -> Tensor:
    """Reflect the last two axes of (B, N, D, H, W)."""
    return F.pad(x.flatten(1, 2), (pad,) * 4, mode="reflect").unflatten(1, x.shape[1:3])


def _interleave(parts: list[Tensor], size: int, dim: int) -> Tensor:
    """Undo ``[x[i::n] for i in range(n)]`` along a negative ``dim``; ``size`` is the whole's."""
    if len(parts) == 1:
        return parts[0]
    longest = parts[0].shape[dim]
    last = (0, 0) * (-dim - 1)
    parts = [F.pad(part, (*last, 0, longest - part.shape[dim])) for part in parts]
    return torch.stack(parts, dim=dim).flatten(dim - 1, dim).narrow(dim, 0, size)
