"""Sliding window attention at any size, for exported programs and traces.

The graph is the same for all sizes: tiles of a fixed size, as many as the map needs, whose queries
and keys are gathered by computed positions. Borders, strides and dilations are in the positions.
Measured in onnxruntime on one AVX-512 core (one map of 56², four heads of 16 channels, k = 7),
against one row of the window, one offset or all offsets at a time:

===================  =====  ======  ===========
form                 nodes  time    peak memory
===================  =====  ======  ===========
these tiles            170   70 ms       65 MiB
row by row             209  715 ms       41 MiB
offset by offset       641   93 ms       84 MiB
unfolded                84  757 ms      210 MiB
tiles of known size     37   81 ms       87 MiB
===================  =====  ======  ===========
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.geometry import ceil_div, exceeds, is_inside, on_map
from acmix.tracing import as_number

# As in the tiles of known sizes; 4 and 6 took twice as long here.
_TILE = 8


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """See ``acmix.sliding_window_attention``; the position is in the keys already."""
    batch, height, width = q.shape[0], *q.shape[3:]
    heads, head_dim = as_number(q.shape[1]), as_number(q.shape[2])
    mirror = exceeds((height, width), dilation * (kernel_size // 2), q.device)
    rows, cols = (_Axis(size, kernel_size, stride, dilation, mirror) for size in (height, width))
    # One tile too many, as torch.export makes a guard of the question whether there is but one.
    # (No remainders here: the ONNX exporter has none by a number that is left open.)
    tile = torch.arange(rows.tiles * cols.tiles + 1, device=q.device)
    tile_row = tile // cols.tiles
    tile_col = tile - tile_row * cols.tiles
    row_keys, row_mask = rows.keys(tile_row)
    col_keys, col_mask = cols.keys(tile_col)
    keys = row_keys[:, :, None] * width + col_keys[:, None, :]
    queries = rows.queries(tile_row)[:, :, None] * width + cols.queries(tile_col)[:, None, :]
    mask = row_mask[:, :, None, :, None] & col_mask[:, None, :, None, :]
    mask = mask.flatten(3, 4).flatten(1, 2).unsqueeze(1)

    q, kv = _sequences(q, queries), _sequences(torch.cat([k, v], dim=2), keys)
    out = F.scaled_dot_product_attention(q, kv[..., :head_dim], kv[..., head_dim:], attn_mask=mask)
    # Attention with a mask is float32 in what the ONNX exporter of traces makes.
    out = out.to(q.dtype).transpose(1, 2).reshape(-1, batch, heads, head_dim)
    row_tiles, row_places = rows.outputs()
    col_tiles, col_places = cols.outputs()
    tiles = (row_tiles * cols.tiles)[:, None] + col_tiles
    places = (row_places * _TILE)[:, None] + col_places
    return out[tiles * _TILE**2 + places].permute(2, 3, 4, 0, 1)


class _Axis:
    """One axis of ``size`` pixels, cut into ``tiles``.

    Outputs ``phases`` apart are a multiple of ``dilation`` pixels apart: T of those are a tile, and
    the keys of a tile are ``dilation`` pixels apart. The tiles of a phase are neighbours.
    """

    def __init__(
        self, size: int, kernel_size: int, stride: int, dilation: int, mirror: Tensor
    ) -> None:
        self.size, self.kernel_size, self.mirror = size, kernel_size, mirror
        self.stride, self.dilation = stride, dilation
        self.phases = dilation // math.gcd(stride, dilation)
        # From a query of a tile to the next one, in keys.
        self.step = self.phases * stride // dilation
        self.outs = ceil_div(size, stride)
        self.tiles_of_phase = ceil_div(self.outs, _TILE * self.phases)
        self.tiles = self.phases * self.tiles_of_phase

    def queries(self, tile: Tensor) -> Tensor:
        """Pixel of every query of the tiles, (tiles, T)."""
        queries = self._first(tile) + self._range(_TILE) * (self.step * self.dilation)
        return queries.clamp(max=self.size - 1)

    def keys(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel of every key of the tiles, (tiles, halo), and who sees it, (tiles, T, halo)."""
        key = self._range((_TILE - 1) * self.step + self.kernel_size)
        offset = key - self._range(_TILE)[:, None] * self.step
        window = (offset >= 0) & (offset < self.kernel_size)
        pad = self.dilation * (self.kernel_size // 2)
        keys = self._first(tile) + (key * self.dilation - pad)
        # Queries outside, which fill up a tile, may see no key; nobody reads what they get.
        seen = is_inside(keys, self.size, self.mirror)
        return on_map(keys, self.size), window & seen[:, None, :]

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Tile of every output, and its place there, each (outs,)."""
        output = self._range(self.outs)
        if self.phases == 1:
            return output // _TILE, output % _TILE
        phase, number = output % self.phases, output // self.phases
        return phase * self.tiles_of_phase + number // _TILE, number % _TILE

    def _first(self, tile: Tensor) -> Tensor:
        """Pixel of the first query of the tiles, (tiles, 1)."""
        if self.phases == 1:
            return tile[:, None] * (_TILE * self.stride)
        phase = tile // self.tiles_of_phase
        number = tile - phase * self.tiles_of_phase
        return (phase + number * (_TILE * self.phases))[:, None] * self.stride

    def _range(self, length: int) -> Tensor:
        return torch.arange(length, device=self.mirror.device)


def _sequences(x: Tensor, pixels: Tensor) -> Tensor:
    """Pixels of (B, N, D, H, W), counted row by row, as (tiles, B * N, rows * cols, D)."""
    x = x.flatten(3).permute(3, 0, 1, 2)[pixels]
    return x.permute(0, 3, 4, 1, 2, 5).flatten(3, 4).flatten(1, 2)
