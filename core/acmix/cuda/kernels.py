"""The CUDA kernels by source and template arguments, and how a map is cut into tiles."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

SOURCES = ("attention", "aggregation", "subtraction")
KERNEL_SIZES = (3, 5, 7)
TILED_STRIDES = (1, 2)
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
# No fast-math: the log-sum-exp of the forward must be the one that the backward subtracts.
COMPILE_OPTIONS = ("-std=c++17",)
# Channels of one thread: CHANNELS of aggregation.cu.
CHANNELS = 8

# The bound that every kernel was compiled for.
_THREADS = 128
_MAX_COLUMNS, _MAX_ROWS = 16, 8
# What every device lends a block without being asked for more.
_SHARED_BYTES = 48 * 1024
# More channels a barrier help little, and less shared memory lets more blocks live together.
_MAX_CHUNK = 8
_MAX_BLOCK_DEPTH = 64
# Two for each multiprocessor of an H100: maps of 7×7 fill a device with many small blocks rather
# than with few full ones.
_ENOUGH_BLOCKS = 264


@cache
def source(stem: str) -> str:
    """The whole text of a kernel file, the shared header in place of its ``#include``."""
    folder = Path(__file__).parents[1] / "csrc" / "cuda"
    header = (folder / "common.cuh").read_text()
    return (folder / f"{stem}.cu").read_text().replace('#include "common.cuh"', header)


def query_rows(kernel_size: int, dtype: torch.dtype) -> int:
    """Queries of one thread of the tiled forward kernel, as many as registers can hold."""
    rows = {3: 4, 5: 4, 7: 2}[kernel_size]
    return rows // 2 if dtype == torch.float64 else rows


def has_tiles(kernel_size: int, stride: int, dilation: int, dtype: torch.dtype) -> bool:
    """Whether the tiled attention kernels were compiled for this window.

    The 2 * 49 double sums of a 7×7 window don't fit the registers of a thread.
    """
    fits = kernel_size < 7 or dtype != torch.float64
    return fits and dilation == 1 and kernel_size in KERNEL_SIZES and stride in TILED_STRIDES


def names(stem: str, dtype: torch.dtype) -> list[str]:
    """Name expressions of every instantiation of a source for one dtype."""
    kind = TYPES[dtype]
    if stem == "attention":
        windows = [(size, step) for size in KERNEL_SIZES for step in TILED_STRIDES]
        tiled = [window for window in windows if has_tiles(*window, 1, dtype)]
        return [
            *(f"{stem}_forward<{kind}, {k}, {s}, {query_rows(k, dtype)}>" for k, s in tiled),
            *(f"{stem}_grad_query<{kind}, {k}, {s}>" for k, s in tiled),
            *(f"{stem}_grad_key<{kind}, {k}, {s}>" for k, s in tiled),
            *(f"{stem}_{part}_any<{kind}>" for part in ("forward", "grad_query", "grad_key")),
        ]
    parts = {
        "aggregation": ("forward", "grad_value", "grad_weight"),
        "subtraction": ("forward", "grad_first", "grad_second"),
    }[stem]
    return [f"{stem}_{part}<{kind}, {k}>" for part in parts for k in (0, *KERNEL_SIZES)]


class Pixels(NamedTuple):
    """One thread for each pixel of each plane."""

    grid: int
    block: tuple[int, int, int]
    blocks_per_plane: int


def cut_pixels(pixels: int, planes: int) -> Pixels:
    """Blocks of whole warps over planes of ``pixels`` each."""
    threads = min(_THREADS, -(-pixels // 32) * 32)
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
    size: tuple[int, int],
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
    y, tiles_y = _even(-(-size[0] // rows), limit)
    x, tiles_x = _even(size[1], _MAX_COLUMNS)
    spare = tiles_y * tiles_x * planes // _ENOUGH_BLOCKS
    z = max(1, min(spare, _THREADS // (x * y), _MAX_BLOCK_DEPTH))

    def halo(threads: int) -> int:
        if gather:
            return (threads + stride - 2) // stride + -(-kernel_size // stride)
        return (threads - 1) * stride + kernel_size

    positions = halo(y * rows) * halo(x)
    table = -(-4 * positions // 16) * 16
    channel = z * positions * (8 if dtype == torch.float64 else 4)
    chunk = min(channels, _MAX_CHUNK, (_SHARED_BYTES - table) // channel)
    grid = tiles_y * tiles_x * -(-planes // z)
    return Tiles(grid, (x, y, z), tiles_y, tiles_x, chunk, table + chunk * channel)


def _even(size: int, limit: int) -> tuple[int, int]:
    """Length and number of the fewest tiles of at most ``limit``, cut evenly."""
    count = -(-size // limit)
    return -(-size // count), count
