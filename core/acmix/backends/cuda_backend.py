"""Operators as CUDA kernels, compiled for the device at hand by CuPy at the first call.

Importing this needs torch alone. Maps of any strides come in and are made contiguous here.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from acmix.backends.kernel_calls import (
    KERNEL_OPS,
    neighbourhood_aggregation,
    neighbourhood_difference,
    sliding_window_attention,
)
from acmix.checks import require
from acmix.cuda import kernels
from acmix.cuda.launcher import launch
from acmix.geometry import can_reflect, output_size

__all__ = [
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "why_not",
]


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``; an empty list if it can."""
    reasons = []
    if op not in KERNEL_OPS:
        reasons.append(f"there is no CUDA kernel of {op}")
    if x.dtype not in kernels.TYPES:
        names = ", ".join(str(dtype) for dtype in kernels.TYPES)
        reasons.append(f"dtype {x.dtype} is not one of {names}")
    if x.device.type != "cuda":
        reasons.append(f"the tensor is on {x.device}, not on a CUDA device")
    elif not _has_cupy():
        reasons.append(f"CuPy is missing; {_install_cupy()}")
    return reasons


@torch.compiler.assume_constant_result
def _has_cupy() -> bool:
    return find_spec("cupy") is not None


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Sliding-window attention of (B, N, D, H, W) maps; a position belongs to the keys.

    Returns:
        The output, (B, N, D, ceil(H / stride), ceil(W / stride)), and the log-sum-exp of the
        logits, (B, N, ceil(H / stride), ceil(W / stride)) in float32 (float64 for float64).
    """
    call = _Attention(k, kernel_size, stride, dilation)
    q, k, v = _at_stride(q, stride), k.contiguous(), v.contiguous()
    out, lse = torch.empty_like(q), _row_sums(q)
    call.run("forward", (q, k, v, out, lse))
    return out, lse


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, keys and values; ``grad`` is that of the output."""
    call = _Attention(k, kernel_size, stride, dilation)
    shape = q.shape
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    q, k, v = _at_stride(q, stride), k.contiguous(), v.contiguous()
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    delta = torch.empty_like(lse)
    call.run("grad_query", (grad, q, k, v, out, lse, dq, delta))
    call.run("grad_key", (grad, q, k, v, lse, delta, dk, dv))
    if stride > 1:
        full = dq.new_zeros(shape)
        full[..., ::stride, ::stride] = dq
        dq = full
    return dq, dk, dv


def aggregation_forward(
    v: Tensor, w: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Sum of the window's values (B, C, H, W) under the weights (B, Cw, k², Ho, Wo) of a pixel."""
    window = _Window(v, kernel_size, stride, dilation, reflect)
    v, w = v.contiguous(), w.contiguous()
    out = v.new_empty(*v.shape[:2], *window.out_size)
    cut, chunks = _cut_channels(v, w, window.out_size)
    sizes = (v.shape[1], w.shape[1], chunks, *window.sizes, cut.blocks_per_plane)
    window.run("aggregation", "forward", cut, (v, w, out, *sizes))
    return out


def aggregation_backward(
    grad: Tensor,
    v: Tensor,
    w: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the values and the weights."""
    window = _Window(v, kernel_size, stride, dilation, reflect)
    grad, v, w = grad.contiguous(), v.contiguous(), w.contiguous()
    dv, dw = torch.empty_like(v), torch.empty_like(w)
    channels, groups = v.shape[1], w.shape[1]
    cut, chunks = _cut_channels(v, w, window.in_size)
    sizes = (channels, groups, chunks, *window.sizes, cut.blocks_per_plane)
    window.run("aggregation", "grad_value", cut, (grad, w, dv, *sizes))
    cut = kernels.cut_pixels(window.out_size[0] * window.out_size[1], v.shape[0] * groups)
    sizes = (channels, groups, *window.sizes, cut.blocks_per_plane)
    window.run("aggregation", "grad_weight", cut, (grad, v, dw, *sizes))
    return dv, dw


def subtraction_forward(
    a: Tensor, b: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Differences (B, C, k², Ho, Wo) of a pixel of ``a`` and the window of ``b`` around it."""
    window = _Window(b, kernel_size, stride, dilation, reflect)
    a, b = a.contiguous(), b.contiguous()
    out = a.new_empty(*a.shape[:2], kernel_size**2, *window.out_size)
    cut = _cut_planes(a, window.out_size)
    window.run("subtraction", "forward", cut, (a, b, out, *window.sizes, cut.blocks_per_plane))
    return out


def subtraction_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of both maps."""
    window = _Window(b, kernel_size, stride, dilation, reflect)
    grad = grad.contiguous()
    shape = a.shape
    da = grad.new_empty(shape) if stride == 1 else grad.new_zeros(shape)
    db = grad.new_empty(shape)
    cut = _cut_planes(a, window.out_size)
    sizes = (*window.in_size, *window.out_size, kernel_size, stride, cut.blocks_per_plane)
    window.run("subtraction", "grad_first", cut, (grad, da, *sizes))
    cut = _cut_planes(a, window.in_size)
    window.run("subtraction", "grad_second", cut, (grad, db, *window.sizes, cut.blocks_per_plane))
    return da, db


class _Attention:
    """Which family of attention kernels runs a call, and its arguments."""

    def __init__(self, k: Tensor, kernel_size: int, stride: int, dilation: int) -> None:
        self.batch, self.heads, self.channels, *self.in_size = k.shape
        self.dtype, self.stride, self.kernel_size = k.dtype, stride, kernel_size
        self.out_size = output_size(*self.in_size, stride)
        self.window = (kernel_size, stride, dilation)
        self.reflect = can_reflect(*self.in_size, dilation * (kernel_size // 2))
        self.tiled = kernels.has_tiles(*self.window, k.dtype)
        _check_plane(self.in_size, *self.window)

    def run(self, part: str, tensors: tuple[Tensor, ...]) -> None:
        """Launch ``forward``, ``grad_query`` or ``grad_key``."""
        planes = self.batch * self.heads
        if planes == 0:
            return
        kind = kernels.TYPES[self.dtype]
        gather = part == "grad_key"
        owned = self.in_size if gather else self.out_size
        sizes = (self.channels, *self.in_size, *self.out_size)
        scale = float(self.channels) ** -0.5
        if not self.tiled:
            cut = kernels.cut_pixels(owned[0] * owned[1], planes)
            args = (*tensors, *sizes, *self.window, self.reflect, cut.blocks_per_plane, scale)
            launch("attention", f"attention_{part}_any<{kind}>", cut.grid, cut.block, args)
            return
        template = f"{kind}, {self.kernel_size}, {self.stride}"
        rows = 1
        if part == "forward":
            rows = kernels.query_rows(self.kernel_size, self.dtype)
            template += f", {rows}"
        cut = kernels.cut_tiles(
            owned,
            planes,
            self.channels,
            self.dtype,
            kernel_size=self.kernel_size,
            stride=self.stride,
            rows=rows,
            gather=gather,
        )
        cuts = (cut.tiles_y, cut.tiles_x, cut.chunk)
        args = (*tensors, planes, *sizes, *cuts, self.reflect, scale)
        name = f"attention_{part}<{template}>"
        launch("attention", name, cut.grid, cut.block, args, cut.shared_bytes)


class _Window:
    """The sizes that every kernel over windows of (B, C, H, W) takes."""

    def __init__(
        self, x: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
    ) -> None:
        pad = dilation * (kernel_size // 2)
        fits = not reflect or can_reflect(*x.shape[-2:], pad)
        require(fits, "padding", pad, f"is too wide to reflect a map of {tuple(x.shape[-2:])}")
        _check_plane(x.shape[-2:], kernel_size, stride, dilation)
        self.dtype, self.kernel_size = x.dtype, kernel_size
        self.in_size = tuple(x.shape[-2:])
        self.out_size = output_size(*self.in_size, stride)
        window = (kernel_size, stride, dilation, reflect)
        self.sizes = (*self.in_size, *self.out_size, *window)

    def run(self, stem: str, part: str, cut: kernels.Pixels, args: tuple) -> None:
        """Launch one kernel with the kernel size compiled in where there is such a one."""
        size = self.kernel_size if self.kernel_size in kernels.KERNEL_SIZES else 0
        name = f"{stem}_{part}<{kernels.TYPES[self.dtype]}, {size}>"
        launch(stem, name, cut.grid, cut.block, args)


def _at_stride(q: Tensor, stride: int) -> Tensor:
    return q[..., ::stride, ::stride].contiguous()


def _row_sums(q: Tensor) -> Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape[:2] + q.shape[3:], dtype=dtype)


def _cut_planes(x: Tensor, size: tuple[int, int]) -> kernels.Pixels:
    return kernels.cut_pixels(size[0] * size[1], x.shape[0] * x.shape[1])


def _cut_channels(v: Tensor, w: Tensor, size: tuple[int, int]) -> tuple[kernels.Pixels, int]:
    """Threads for some channels that share a weight, and how many such chunks there are."""
    groups = w.shape[1]
    chunks = -(-v.shape[1] // (kernels.CHANNELS * groups))
    return kernels.cut_pixels(size[0] * size[1], v.shape[0] * groups * chunks), chunks


def _check_plane(size: tuple[int, int], kernel_size: int, stride: int, dilation: int) -> None:
    """Refuse what 32-bit positions within one channel cannot count."""
    reach = max(size) + stride + dilation * kernel_size
    fits = size[0] * size[1] < 2**31 and reach < 2**30
    require(fits, "map size", tuple(size), "a kernel counts fewer than 2**31 pixels a channel")


def _install_cupy() -> str:
    """Which of CuPy's packages goes with this torch."""
    if torch.version.cuda is None:
        return "and this torch is built without CUDA"
    major = torch.version.cuda.split(".")[0]
    return f"pip install cupy-cuda{major}x" if int(major) > 11 else "torch with CUDA 12 is needed"
