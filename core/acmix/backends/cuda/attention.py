"""CUDA kernels of sliding window attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.cuda.launcher import launch
from acmix.backends.cuda.sources import TYPES, has_tiles, query_rows
from acmix.backends.cuda.tiles import check_plane, cut_pixels, cut_tiles
from acmix.geometry import can_reflect, output_size, usable_window
from acmix.ops.attention import empty_lse, sliding_window_attention
from acmix.ops.registration import kernel

__all__ = ["at_stride", "attend", "attend_backward", "sliding_window_attention"]


@kernel(ops.attention, "CUDA")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Sliding-window attention of (B, N, D, H, W) maps; a position belongs to the keys.

    Returns:
        The output, (B, N, D, ceil(H / stride), ceil(W / stride)), and the log-sum-exp of the
        logits, (B, N, ceil(H / stride), ceil(W / stride)) in float32 (float64 for float64).
    """
    maps = at_stride(q, stride), k.contiguous(), v.contiguous()
    return attend(*maps, (kernel_size, stride, dilation))


@kernel(ops.attention_backward, "CUDA")
def _backward(
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
    """Gradients of the queries, keys and values; ``grad`` is that of the output.

    ``out`` is not read: the kernels have every P and dP at hand, and sum P * dP themselves.
    """
    shape = q.shape
    q, k, v = at_stride(q, stride), k.contiguous(), v.contiguous()
    grads = [torch.empty_like(x) for x in (q, k, v)]
    attend_backward(grad, (q, k, v), lse, (kernel_size, stride, dilation), grads)
    dq, dk, dv = grads
    if stride > 1:
        full = dq.new_zeros(shape)
        full[..., ::stride, ::stride] = dq
        dq = full
    return dq, dk, dv


def attend(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Attention of contiguous maps, and its log-sum-exp.

    Args:
        q: Queries at the stride, (B, N, D, H', W'), or at stride 1 all projections, q, k, v.
        k: Keys with the position taken off, (B, N, D, H, W).
        v: Values, (B, N, D, H, W), or all projections.
        window: Kernel size, stride, dilation.
    """
    call = _Attention(q, k, v, window)
    out = k.new_empty(*k.shape[:3], *call.out_size)
    lse = empty_lse(k, call.out_size)
    call.run("forward", (q, k, v, out, lse))
    return out, lse


def attend_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    lse: Tensor,
    window: tuple[int, int, int],
    grads: Sequence[Tensor],
) -> None:
    """Write the gradients of q, k and v.

    Args:
        grad: Gradient of the output.
        maps: q, k and v as ``attend`` takes them.
        lse: Log-sum-exp of the logits.
        window: Kernel size, stride, dilation.
        grads: For those of q, k and v; each stored as q, v and v are.
    """
    q, k, v = maps
    dq, dk, dv = grads
    call = _Attention(q, k, v, window)
    grad, lse = grad.contiguous(), lse.contiguous()
    delta = torch.empty_like(lse)
    call.run("grad_query", (grad, q, k, v, lse, dq, delta))
    call.run("grad_key", (grad, q, k, v, lse, delta, dk, dv))


def at_stride(q: Tensor, stride: int) -> Tensor:
    """The queries, contiguous."""
    return q[..., ::stride, ::stride].contiguous()


class _Attention:
    """Which family of attention kernels runs a call, and its arguments."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int, int]) -> None:
        batch, heads, self.channels, height, width = k.shape
        self.planes, self.in_size = batch * heads, (height, width)
        self.slots = (heads, q.shape[1], v.shape[1])
        kernel_size, stride, dilation = usable_window(self.in_size, *window)
        self.dtype, self.stride, self.kernel_size = k.dtype, stride, kernel_size
        self.out_size = output_size(self.in_size, stride)
        self.window = (kernel_size, stride, dilation)
        self.reflect = can_reflect(self.in_size, dilation * (kernel_size // 2))
        self.tiled = has_tiles(*self.window, k.dtype)
        self.sizes = (*self.slots, self.channels, *self.in_size, *self.out_size)
        self.scale = float(self.channels) ** -0.5
        check_plane(self.in_size, *self.window)

    def run(self, part: str, tensors: tuple[Tensor, ...]) -> None:
        """Launch ``forward``, ``grad_query`` or ``grad_key``."""
        if self.planes == 0:
            return
        # Threads own keys there, queries elsewhere.
        gather = part == "grad_key"
        owned = self.in_size if gather else self.out_size
        if self.tiled:
            self._run_tiled(part, tensors, owned, gather)
        else:
            self._run_any(part, tensors, owned)

    def _run_any(self, part: str, tensors: tuple[Tensor, ...], owned: tuple[int, int]) -> None:
        """The kernels for windows of any size, a pixel a thread."""
        cut = cut_pixels(owned[0] * owned[1], self.planes)
        last = (self.reflect, cut.blocks_per_plane, self.scale)
        name = f"attention_{part}_any<{TYPES[self.dtype]}>"
        args = (*tensors, *self.sizes, *self.window, *last)
        launch("attention_any", name, cut.grid, cut.block, args)

    def _run_tiled(
        self, part: str, tensors: tuple[Tensor, ...], owned: tuple[int, int], gather: bool
    ) -> None:
        """The kernels that share a tile of keys, compiled for this window."""
        template = f"{TYPES[self.dtype]}, {self.kernel_size}, {self.stride}"
        rows = 1
        if part == "forward":
            rows = query_rows(self.kernel_size, self.dtype)
            template += f", {rows}"
        cut = cut_tiles(
            owned,
            self.planes,
            self.channels,
            self.dtype,
            kernel_size=self.kernel_size,
            stride=self.stride,
            rows=rows,
            gather=gather,
        )
        cuts = (cut.tiles_y, cut.tiles_x, cut.chunk)
        args = (*tensors, self.planes, *self.sizes, *cuts, self.reflect, self.scale)
        name = f"attention_{part}<{template}>"
        launch("attention", name, cut.grid, cut.block, args, cut.shared_bytes)
