"""How a map is cut into tiles, one block of threads each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from acmix.checks import require

# The bound that every kernel was compiled for.
THREADS = 128
_MAX_COLUMNS, _MAX_ROWS = 16, 8
# What every device lends a block without being asked for more.
SHARED_BYTES = 48 * 1024
# More channels a barrier help little, and less shared memory lets more blocks live together.
_MAX_CHUNK = 8
_MAX_BLOCK_DEPTH = 64
# Two for each multiprocessor of an H100: maps of 7×7 fill a device with many small blocks rather
# than with few full ones.
ENOUGH_BLOCKS = 264


class Pixels(NamedTuple):
    """One thread for each pixel of each plane."""

    grid: int
    block: tuple[int, int, int]
    blocks_per_plane: int


def cut_pixels(pixels: int, planes: int) -> Pixels:
    """Blocks of whole warps over planes of ``pixels`` each."""
    threads = min(THREADS, -(-pixels // 32) * 32)
    blocks = -(-pixels // threads)
    return Pixels(blocks * planes, (threads, 1, 1), blocks)


class Tiles(NamedTuple):
    """Blocks of (columns, rows, planes) threads and the shared memory of each."""

    grid: int
    block: tuple[int, int, int]
    tiles_y: int
    tiles_x: int
    chunk: int
    shared_bytes: int


def cut_tiles(
    size: Sequence[int],
    planes: int,
    channels: int,
    dtype: torch.dtype,
    *,
    kernel_size: int,
    stride: int,
    rows: int = 1,
    gather: bool = False,
) -> Tiles:
    """Cut maps of ``size`` threads, ``rows`` pixels each, into even tiles.

    Args:
        size: Height and width of the map whose pixels the threads own.
        planes: Heads of all images.
        channels: Channels of a head.
        dtype: Of the maps; shared memory holds its accumulator type.
        kernel_size: Side of the window.
        stride: Of the queries.
        rows: Pixels of one thread, below each other.
        gather: Threads own keys and read queries, instead of the opposite.
    """
    limit = max(1, _MAX_ROWS // min(rows, 2))
    y, tiles_y = even(-(-size[0] // rows), limit)
    x, tiles_x = even(size[1], _MAX_COLUMNS)
    spare = tiles_y * tiles_x * planes // ENOUGH_BLOCKS
    z = max(1, min(spare, THREADS // (x * y), _MAX_BLOCK_DEPTH))

    def halo(threads: int) -> int:
        if gather:
            return (threads + stride - 2) // stride + -(-kernel_size // stride)
        return (threads - 1) * stride + kernel_size

    positions = halo(y * rows) * halo(x)
    table = -(-4 * positions // 16) * 16
    channel = z * positions * (8 if dtype == torch.float64 else 4)
    chunk = min(channels, _MAX_CHUNK, (SHARED_BYTES - table) // channel)
    grid = tiles_y * tiles_x * -(-planes // z)
    return Tiles(grid, (x, y, z), tiles_y, tiles_x, chunk, table + chunk * channel)


def even(size: int, limit: int) -> tuple[int, int]:
    """Length and number of the fewest tiles of at most ``limit``, cut evenly."""
    count = -(-size // limit)
    return -(-size // count), count


def check_plane(size: Sequence[int], kernel_size: int, stride: int, dilation: int) -> None:
    """Refuse what 32-bit positions within one channel cannot count."""
    reach = max(size) + stride + dilation * kernel_size
    fits = size[0] * size[1] < 2**31 and reach < 2**30
    require(fits, "map size", tuple(size), "a kernel counts fewer than 2**31 pixels a channel")
