"""How maps are cut into tiles for the convolution path: shared memory holds many maps at once."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple, TypeVar

import torch

from acmix.backends.cuda import tiles
from acmix.backends.cuda.tiles import SHARED_BYTES, THREADS, Tiles, even
from acmix.checks import require
from acmix.geometry import ceil_div

# Constants of the kernels' sources.
FOUR, _TRIPLE, _BANKS = 4, 3, 32
_MAX_COLUMNS, _MAX_ROWS = 32, 4


@cache
def cut_path(
    size: tuple[int, int],
    planes: int,
    dtype: torch.dtype,
    *,
    rows: int,
    step: int,
    kernel_size: int,
    inputs: int,
    unit: int = 1,
    whole: bool = False,
    kept: int = 0,
) -> Tiles:
    """Cut maps of ``size`` threads, ``rows`` pixels each, into tiles whose inputs fit a block.

    Args:
        size: Height and width of the map whose pixels the threads own.
        planes: Channels of all images.
        dtype: Of the maps; shared memory holds its accumulator type.
        rows: Pixels of one thread, below each other.
        step: Loaded positions from one pixel to the next.
        kernel_size: Side of the window.
        inputs: Maps that a pixel is summed from.
        unit: Inputs that are loaded together.
        whole: Whether smaller tiles are better than loading inputs twice.
        kept: Maps of the tile's own pixels that are kept beside them, to be multiplied.
    """
    item, fitting = _item(dtype), []
    for limit_y, limit_x in _limits(_MAX_ROWS, _MAX_COLUMNS):
        (y, tiles_y), (x, tiles_x) = even(ceil_div(size[0], rows), limit_y), even(size[1], limit_x)
        positions = ((y * rows - 1) * step + kernel_size) * ((x - 1) * step + kernel_size)
        table = _table(positions)
        z = max(1, min(tiles_y * tiles_x * planes // tiles.ENOUGH_BLOCKS, THREADS // (x * y)))
        for depth in _halves(z):
            threads = x * y * depth
            free = (SHARED_BYTES - table) // item - kept * threads * rows
            scratch = FOUR * threads * max(rows, _TRIPLE) if kept else 0
            chunk = _chunk(free // (depth * positions), unit, inputs)
            if chunk > 0 and scratch <= free:
                used = max(chunk * depth * positions, scratch) + kept * threads * rows
                grid = tiles_y * tiles_x * ceil_div(planes, depth)
                block = (x, y, depth)
                cut = Tiles(grid, block, tiles_y, tiles_x, chunk, table + used * item)
                fitting.append(cut)
    return _best(fitting, inputs if whole else min(inputs, FOUR), kernel_size)


class Shares(NamedTuple):
    """Blocks of (items, slices) threads that sum over some tiles, and the shared memory of each."""

    parts: int
    block: tuple[int, int, int]
    tile: tuple[int, int]
    tiles_y: int
    tiles_x: int
    chunk: int
    shared_bytes: int


@cache
def cut_sums(
    size: tuple[int, int],
    images: int,
    depth: int,
    dtype: torch.dtype,
    *,
    step: int,
    kernel_size: int,
    items: int,
    wide: int,
    fours: int,
    inputs: int,
    unit: int = 1,
) -> Shares:
    """Cut the sums over all pixels of a map of ``size`` (the outputs) for the kernels' gradient.

    Args:
        size: Height and width of the output.
        images: Of the batch.
        depth: Channels of a map.
        dtype: Of the maps.
        step: Loaded positions from one output to the next.
        kernel_size: Side of the window.
        items: Threads that one input needs.
        wide: Taps of a thread.
        fours: Outputs of a channel by four.
        inputs: Maps that a pixel is summed from.
        unit: Inputs that are loaded together.
    """
    item, fitting = _item(dtype), []
    for limit_y, limit_x in _limits(_MAX_ROWS * FOUR, _MAX_COLUMNS):
        (h, tiles_y), (w, tiles_x) = even(size[0], limit_y), even(size[1], limit_x)
        width = ((w - 1) * step + kernel_size) | 1
        positions = ((h - 1) * step + kernel_size) * width
        span = positions + (kernel_size * width - positions) % _BANKS
        table, graded = _table(positions), fours * h * w * FOUR
        free = (SHARED_BYTES - table) // item - graded - FOUR
        # A pass is over the inputs whose items the threads can hold.
        chunk = _chunk(min(free // span, max(THREADS // items, unit)), unit, inputs)
        if chunk <= 0:
            continue
        passes = ceil_div(chunk * items, THREADS)
        across = ceil_div(chunk * items, passes)
        slices = min(h, THREADS // across)
        maps = ceil_div(chunk * span, FOUR) * FOUR
        used = max(maps + graded, wide * FOUR * across * slices)
        parts = min(images * tiles_y * tiles_x, ceil_div(2 * tiles.ENOUGH_BLOCKS, max(depth, 1)))
        memory = table + used * item
        block = (across, slices, 1)
        if memory <= SHARED_BYTES:
            fitting.append(Shares(parts, block, (h, w), tiles_y, tiles_x, chunk, memory))
    return _best(fitting, min(inputs, max(THREADS // items, unit)), kernel_size)


_Cut = TypeVar("_Cut", Tiles, Shares)


def _best(fitting: list[_Cut], wanted: int, kernel_size: int) -> _Cut:
    """The first cut, the largest tile, that loads as many inputs at once as are wanted, or most."""
    remedy = "its windows do not fit a block's shared memory: give backend='torch'"
    require(len(fitting) > 0, "kernels.shape[-1]", kernel_size, remedy)
    return max(fitting, key=lambda cut: min(cut.chunk, wanted))


def _limits(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Bounds of a tile, the largest first."""
    bounds = [(y, x) for y in _halves(rows) for x in _halves(columns)]
    yield from sorted(bounds, key=lambda bound: (-bound[0] * bound[1], -bound[1]))


def _halves(count: int) -> Iterator[int]:
    while count > 0:
        yield count
        count //= 2


def _chunk(most: int, unit: int, inputs: int) -> int:
    """Inputs of one pass: all, or whole units of them."""
    return inputs if most >= inputs else most // unit * unit


def _item(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


def _table(positions: int) -> int:
    return ceil_div(4 * positions, 16) * 16
