"""The CUDA kernels by source and template arguments."""

import re
from functools import cache
from pathlib import Path

import torch

SOURCES = (
    "attention",
    "attention_any",
    "aggregation",
    "convolution",
    "convolution_maps",
    "difference",
)
KERNEL_SIZES = (3, 5, 7)
TILED_STRIDES = (1, 2)
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
# No fast-math: the log-sum-exp of the forward must be the one that the backward takes off.
COMPILE_OPTIONS = ("-std=c++17",)
# Channels of one thread: CHANNELS of aggregation.cu.
CHANNELS = 8
# Kernel size and stride that the kernels of the convolution path were compiled for; 0 takes all.
# Each once with a layer and once without.
CONVOLUTIONS = {
    "convolution": (
        ("convolution_forward", ("3, 1", "3, 2", "0, 0")),
        ("convolution_grad_kernels", ("3, 1", "3, 2", "0, 0")),
    ),
    "convolution_maps": (("convolution_grad_maps", ("3", "0")),),
}


@cache
def source(stem: str) -> str:
    """The whole text of a kernel file, our headers in place of their ``#include``."""
    return _text(f"{stem}.cu")


def _text(name: str) -> str:
    text = (Path(__file__).parents[2] / "csrc" / "cuda" / name).read_text()
    return re.sub(r'#include "(.+)"', lambda found: _text(found[1]), text)


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


def path_window(kernel_size: int, stride: int) -> tuple[int, int]:
    """Kernel size and stride of the convolution path's kernels that run a call."""
    known = kernel_size == 3 and stride in TILED_STRIDES
    return (kernel_size, stride) if known else (0, 0)


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
        ]
    if stem == "attention_any":
        parts = ("forward", "grad_query", "grad_key")
        return [f"attention_{part}_any<{kind}>" for part in parts]
    if stem in CONVOLUTIONS:
        forms = ("true", "false")
        return [
            f"{part}<{kind}, {window}, {form}>"
            for part, windows in CONVOLUTIONS[stem]
            for window in windows
            for form in forms
        ]
    parts = {
        "aggregation": ("forward", "grad_value", "grad_weight"),
        "difference": ("forward", "grad_a", "grad_b"),
    }[stem]
    return [f"{stem}_{part}<{kind}, {k}>" for part in parts for k in (0, *KERNEL_SIZES)]
