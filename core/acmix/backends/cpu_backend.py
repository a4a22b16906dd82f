"""Compiled CPU kernels (``acmix/csrc/cpu``), built on first use where a compiler is at hand.

float32 and float64 run as they are; float16 and bfloat16 are computed in float32. Sums over the
channels and the window are kept in that type, and results don't depend on the number of threads.
"""

import math

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.folding import fold
from acmix.backends.kernel_calls import (
    KERNEL_OPS,
    neighbourhood_aggregation,
    neighbourhood_difference,
    sliding_window_attention,
)
from acmix.geometry import can_reflect, one_hot_shifts, output_size
from acmix.native import library

__all__ = [
    "convolution_path",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "why_not",
]

_OPS = (*KERNEL_OPS, "convolution_path")
# Multiply-adds per pixel and channel are k_c² 3N N folded and k_c² (3N + k_c² N) otherwise: equal at
# N = 4, where folding saves a pass.
_MAX_FOLDED_MAPS = 12
# Scratch of one unit of the convolution path, to stay in the second level cache.
_BAND_BYTES = 512 << 10
_VECTOR_BYTES = 64

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def _library_problem() -> str | None:
    return library.problem()


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``."""
    reasons = []
    if op not in _OPS:
        reasons.append("torch's own kernels are the fast ones for it")
    if x.dtype not in _DTYPES:
        reasons.append(f"dtype {x.dtype} is not floating point")
    if x.device.type != "cpu":
        reasons.append(f"the tensors are on {x.device}")
    # Last, and only for calls that could run: finding out may build the library.
    problem = _library_problem() if not reasons else None
    return reasons if problem is None else [f"the CPU kernels are missing: {problem}"]


def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    *,
    stride: int,
) -> Tensor:
    """See ``acmix.convolution_path``."""
    taps, maps = fc_weight.shape
    head_dim = qkv.shape[1] // maps
    if kernels is None:
        shifts = one_hot_shifts(math.isqrt(taps), like=fc_weight)
        kernels = shifts.expand(head_dim, *shifts.shape[-3:])
    if fc_bias is not None:
        # A map of ones carries the bias, and the padding that comes after the layer cuts it off.
        fc_weight = torch.cat([fc_weight, fc_bias[:, None]], dim=1)
    x = qkv.unflatten(1, (maps, head_dim))
    if maps <= _MAX_FOLDED_MAPS:
        return ops.convolution(x, None, fold(kernels, fc_weight), stride)
    return ops.convolution(x, fc_weight, kernels, stride)


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Kernel of ``acmix::sliding_window_attention``."""
    height, width = q.shape[3:]
    size = output_size(height, width, stride)
    q32, k32, v32 = _computable(q), _computable(k), _computable(v)
    out, lse = ops.empty_map(q32, (*q.shape[:3], *size)), ops.empty_lse(q, *size)
    library.load().run(
        "attention_forward",
        [q32, k32, v32, out, lse.unsqueeze(2)],
        (*q.shape, kernel_size, stride, dilation),
        reflect=can_reflect(height, width, dilation * (kernel_size // 2)),
    )
    return out.to(q.dtype), lse


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
    """Kernel of ``acmix::sliding_window_attention_backward``.

    ``out`` is not read: the kernel has every P and dP at hand, and sums P * dP itself.
    """
    q32, k32, v32 = _computable(q), _computable(k), _computable(v)
    dq, dk, dv = (ops.empty_map(x, x.shape) for x in (q32, k32, v32))
    if stride > 1:
        dq.zero_()
    library.load().run(
        "attention_backward",
        [
            q32,
            k32,
            v32,
            _computable(grad),
            lse.unsqueeze(2),
            dq[..., ::stride, ::stride],
            dk,
            dv,
        ],
        (*q.shape, kernel_size, stride, dilation),
        reflect=can_reflect(*q.shape[3:], dilation * (kernel_size // 2)),
    )
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def aggregation_forward(
    v: Tensor, w: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Kernel of ``acmix::aggregation``."""
    out = _computable(v).new_empty((*v.shape[:2], *output_size(*v.shape[2:], stride)))
    values = _share_weights(_computable(v), w)
    library.load().run(
        "aggregation_forward",
        [values, _computable(w), _share_weights(out, w)],
        (*values.shape, kernel_size, stride, dilation),
        reflect=reflect,
    )
    return out.to(v.dtype)


def aggregation_backward(
    grad: Tensor,
    v: Tensor,
    w: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    """Kernel of ``acmix::aggregation_backward``."""
    values, weights = _share_weights(_computable(v), w), _computable(w)
    dv, dw = values.new_empty(v.shape), weights.new_empty(w.shape)
    library.load().run(
        "aggregation_backward",
        [values, weights, _share_weights(_computable(grad), w), _share_weights(dv, w), dw],
        (*values.shape, kernel_size, stride, dilation),
        reflect=reflect,
    )
    return dv.to(v.dtype), dw.to(w.dtype)


def subtraction_forward(
    a: Tensor, b: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Kernel of ``acmix::subtraction``."""
    size = output_size(*a.shape[2:], stride)
    out = _computable(a).new_empty((*a.shape[:2], kernel_size**2, *size))
    library.load().run(
        "subtraction_forward",
        [_computable(a).unsqueeze(2), _computable(b).unsqueeze(2), out],
        (*a.shape[:2], 1, *a.shape[2:], kernel_size, stride, dilation),
        reflect=reflect,
    )
    return out.to(a.dtype)


def subtraction_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    """Kernel of ``acmix::subtraction_backward``."""
    grad32 = _computable(grad)
    da, db = grad32.new_empty(a.shape), grad32.new_empty(b.shape)
    library.load().run(
        "subtraction_backward",
        [grad32, da.unsqueeze(2), db.unsqueeze(2)],
        (*a.shape[:2], 1, *a.shape[2:], kernel_size, stride, dilation),
        reflect=reflect,
    )
    return da.to(a.dtype), db.to(b.dtype)


def convolution_forward(maps: Tensor, layer: Tensor | None, kernels: Tensor, stride: int) -> Tensor:
    """Kernel of ``acmix::convolution``."""
    x = _channels_last(_computable(maps))
    batch, count, depth, height, width = x.shape
    size = output_size(height, width, stride)
    out = x.new_empty((batch, *size, kernels.shape[0]))
    weights = _by_output(kernels, x)
    row = stride * weights.shape[1] * (width + kernels.shape[-1])
    # Enough units for all threads; the result does not depend on them.
    share = size[0] * batch * depth * x.itemsize // (2 * torch.get_num_threads() * _VECTOR_BYTES)
    library.load().convolve(
        {"in": x, "out": out.unflatten(3, (depth, -1)).permute(0, 4, 3, 1, 2)},
        None if layer is None else layer.to(x.dtype).contiguous(),
        weights,
        stride=stride,
        band=_even(size[0], min(_BAND_BYTES // (row * _VECTOR_BYTES), share)),
    )
    out = out.permute(0, 3, 1, 2).to(maps.dtype)
    return out if ops.is_channels_last(maps) else out.contiguous()


def convolution_backward(
    grad: Tensor, maps: Tensor, layer: Tensor | None, kernels: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of ``acmix::convolution_backward``; without a layer its gradient is empty."""
    x = _channels_last(_computable(maps))
    batch, count, depth, height, width = x.shape
    weights = _by_output(kernels, x)
    outs, inputs, size, _, _ = weights.shape
    g = _computable(grad).permute(0, 2, 3, 1).contiguous().unflatten(3, (depth, outs))
    dx = x.new_empty((batch, height, width, count, depth)).permute(0, 3, 4, 1, 2)
    columns = (inputs + outs) * (width + size)
    if layer is not None:
        columns += (inputs + layer.shape[1]) * width
    band = _even(height, _BAND_BYTES // (columns * _VECTOR_BYTES))
    summands = batch * -(-height // band)
    dkernels = weights.new_empty((summands, *weights.shape))
    dlayer = None if layer is None else weights.new_empty((summands, *layer.shape, depth))
    library.load().convolve(
        {"in": x, "out": g.permute(0, 4, 3, 1, 2), "grad_in": dx},
        None if layer is None else layer.to(x.dtype).contiguous(),
        weights,
        stride=stride,
        band=band,
        grads=(dlayer, dkernels),
    )
    dkernels = dkernels.sum(0).permute(4, 0, 1, 2, 3).flatten(0, 1).contiguous()
    dlayer = kernels.new_empty(0) if layer is None else dlayer.sum((0, 3)).to(layer.dtype)
    dx = dx.to(maps.dtype)
    if not ops.is_channels_last(maps):
        dx = dx.contiguous()
    return dx, dlayer, dkernels.to(kernels.dtype)


def _by_output(kernels: Tensor, x: Tensor) -> Tensor:
    """(D * N, maps, k, k) as (N, maps, k, k, D): neighbouring channels are vector lanes."""
    return kernels.to(x.dtype).unflatten(0, (x.shape[2], -1)).permute(1, 2, 3, 4, 0).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    """(B, maps, D, H, W) with the channels of a map as neighbours in memory."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def _even(rows: int, most: int) -> int:
    """Size of the equal bands, of at most ``most`` rows and at least one, that ``rows`` make."""
    bands = -(-rows // max(most, 1))
    return -(-rows // max(bands, 1))


def _computable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the kernels compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _share_weights(x: Tensor, w: Tensor) -> Tensor:
    """(B, C, H, W) as (B, Cw, C / Cw, H, W): channels that share the weights c mod Cw together."""
    groups = w.shape[1]
    return x.unflatten(1, (x.shape[1] // groups, groups)).transpose(1, 2)
