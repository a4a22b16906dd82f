"""Compiled CPU kernels (``acmix/csrc/cpu``), built on first use where a compiler is at hand.

float32 and float64 run as they are; float16 and bfloat16 are computed in float32. Sums over the
channels and the window are kept in that type, and results don't depend on the number of threads.
"""

import math
from collections.abc import Sequence

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
    "sliding_window_paths",
    "why_not",
]

_OPS = (*KERNEL_OPS, "convolution_path", "sliding_window_paths")
# Multiply-adds per pixel and channel are k_c² 3N N folded and k_c² (3N + k_c² N) otherwise: equal
# at N = 4, where folding saves a pass.
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
    layer, kernels = _foldable(fc_weight, kernels, fc_bias)
    return ops.convolution(qkv.unflatten(1, (maps, head_dim)), layer, kernels, stride)


def sliding_window_paths(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    *,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """See ``acmix.sliding_window_paths``."""
    layer, kernels = _foldable(fc_weight, kernels, None)
    heads = fc_weight.shape[1] // 3
    window = (kernel_size, stride, dilation)
    return ops.paths(qkv, position, layer, kernels, heads, *window)[:2]


def _foldable(
    fc_weight: Tensor, kernels: Tensor, fc_bias: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Layer and kernels as the operators take them: no layer where folding it is cheaper."""
    maps = fc_weight.shape[1]
    if fc_bias is not None:
        # A map of ones carries the bias, and the padding that comes after the layer cuts it off.
        fc_weight = torch.cat([fc_weight, fc_bias[:, None]], dim=1)
    if maps <= _MAX_FOLDED_MAPS:
        return None, fold(kernels, fc_weight)
    return fc_weight, kernels


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Kernel of ``acmix::sliding_window_attention``."""
    out, lse = _attend(*map(_computable, (q, k, v)), None, (kernel_size, stride, dilation))
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
    maps = [_computable(x) for x in (q, k, v)]
    grads = [ops.empty_map(x, x.shape) for x in maps]
    if stride > 1:
        grads[0].zero_()
    window = (kernel_size, stride, dilation)
    _attend_backward(_computable(grad), *maps, None, lse, window, grads)
    dq, dk, dv = (x.to(q.dtype) for x in grads)
    return dq, dk, dv


def _attend(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor | None, window: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Attention of maps in the kernels' own dtype, and its log-sum-exp."""
    kernel_size, stride, dilation = window
    size = output_size(*q.shape[3:], stride)
    out, lse = ops.empty_map(q, (*q.shape[:3], *size)), ops.empty_lse(q, *size)
    library.load().run(
        "attention_forward",
        [q, k, v, out, lse.unsqueeze(2)],
        (*q.shape, *window),
        reflect=can_reflect(*q.shape[3:], dilation * (kernel_size // 2)),
        position=position,
    )
    return out, lse


def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    lse: Tensor,
    window: tuple[int, int, int],
    grads: Sequence[Tensor],
) -> None:
    """Write the gradients of q, k and v into ``grads``; with a stride, that of q must be zero."""
    kernel_size, stride, dilation = window
    dq, dk, dv = grads
    library.load().run(
        "attention_backward",
        [q, k, v, grad, lse.unsqueeze(2), dq[..., ::stride, ::stride], dk, dv],
        (*q.shape, *window),
        reflect=can_reflect(*q.shape[3:], dilation * (kernel_size // 2)),
        position=position,
    )


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
    out = _convolve(_channels_last(_computable(maps)), layer, kernels, stride).to(maps.dtype)
    return out if ops.is_channels_last(maps) else out.contiguous()


def convolution_backward(
    grad: Tensor, maps: Tensor, layer: Tensor | None, kernels: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of ``acmix::convolution_backward``; without a layer its gradient is empty."""
    x = _channels_last(_computable(maps))
    batch, count, depth, height, width = x.shape
    dx = x.new_empty((batch, height, width, count, depth)).permute(0, 3, 4, 1, 2)
    grads = _convolve_backward(_computable(grad), x, layer, kernels, stride, dx, add=False)
    dx = dx.to(maps.dtype)
    return dx if ops.is_channels_last(maps) else dx.contiguous(), *grads


def paths_forward(
    qkv: Tensor,
    position: Tensor,
    layer: Tensor | None,
    kernels: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of ``acmix::paths``."""
    maps = _packed(qkv, heads)
    attention, lse = _attend(
        *maps.unflatten(1, (3, heads)).unbind(1),
        _position_of_keys(position, maps, heads),
        (kernel_size, stride, dilation),
    )
    results = [attention.flatten(1, 2), _convolve(maps, layer, kernels, stride)]
    if not ops.is_channels_last(_maps(qkv, heads)):
        results = [x.contiguous() for x in results]
    return *(x.to(qkv.dtype) for x in results), lse


def paths_backward(
    grad_attention: Tensor,
    grad_convolution: Tensor,
    qkv: Tensor,
    position: Tensor,
    layer: Tensor | None,
    kernels: Tensor,
    lse: Tensor,
    heads: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel of ``acmix::paths_backward``: both paths sum up in one gradient of the projections."""
    maps = _packed(qkv, heads)
    batch, count, depth, height, width = maps.shape
    # Queries between the strides have no gradient.
    new = maps.new_zeros if stride > 1 else maps.new_empty
    dmaps = new((batch, height, width, count, depth)).permute(0, 3, 4, 1, 2)
    grads = dmaps.unflatten(1, (3, heads)).unbind(1)
    _attend_backward(
        _computable(grad_attention).unflatten(1, (heads, depth)),
        *maps.unflatten(1, (3, heads)).unbind(1),
        _position_of_keys(position, maps, heads),
        lse,
        (kernel_size, stride, dilation),
        grads,
    )
    # One axis at a time: torch is some twenty times slower on both.
    dkeys = grads[1].permute(0, 3, 4, 1, 2).sum(0).sum(2)
    dposition = dkeys.permute(2, 0, 1).neg().to(position.dtype)
    weights = _convolve_backward(
        _computable(grad_convolution), maps, layer, kernels, stride, dmaps, add=True
    )
    dqkv = dmaps.flatten(1, 2).to(qkv.dtype)
    if not ops.is_channels_last(_maps(qkv, heads)):
        dqkv = dqkv.contiguous()
    return dqkv, dposition, *weights


def _maps(qkv: Tensor, heads: int) -> Tensor:
    """(B, 3N * D, H, W) as (B, 3N, D, H, W)."""
    return qkv.unflatten(1, (3 * heads, -1))


def _packed(qkv: Tensor, heads: int) -> Tensor:
    """All maps, (B, 3N, D, H, W), channels last and in the kernels' dtype."""
    return _channels_last(_computable(_maps(qkv, heads)))


def _position_of_keys(position: Tensor, maps: Tensor, heads: int) -> Tensor:
    """(D, H, W) in the shape of the keys."""
    shape = (len(maps), heads, *maps.shape[2:])
    return position.to(maps.dtype).expand(shape)


def _convolve(x: Tensor, layer: Tensor | None, kernels: Tensor, stride: int) -> Tensor:
    """The path of channels-last maps, (B, D * N, H', W'), channels last."""
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
    return out.permute(0, 3, 1, 2)


def _convolve_backward(
    grad: Tensor,
    x: Tensor,
    layer: Tensor | None,
    kernels: Tensor,
    stride: int,
    dx: Tensor,
    *,
    add: bool,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of channels-last maps to ``dx``, or add it; return the weights'."""
    depth, height, width = x.shape[2:]
    weights = _by_output(kernels, x)
    outs, inputs, size, _, _ = weights.shape
    g = grad.permute(0, 2, 3, 1).contiguous().unflatten(3, (depth, outs))
    columns = (inputs + outs) * (width + size)
    if layer is not None:
        columns += (inputs + layer.shape[1]) * width
    band = _even(height, _BAND_BYTES // (columns * _VECTOR_BYTES))
    summands = len(x) * -(-height // band)
    dkernels = weights.new_empty((summands, *weights.shape))
    dlayer = None if layer is None else weights.new_empty((summands, *layer.shape, depth))
    library.load().convolve(
        {"in": x, "out": g.permute(0, 4, 3, 1, 2), "grad_in": dx},
        None if layer is None else layer.to(x.dtype).contiguous(),
        weights,
        stride=stride,
        band=band,
        grads=(dlayer, dkernels),
        add=add,
    )
    dkernels = dkernels.sum(0).permute(4, 0, 1, 2, 3).flatten(0, 1).contiguous()
    dlayer = kernels.new_empty(0) if layer is None else dlayer.sum((0, 3)).to(layer.dtype)
    return dlayer, dkernels.to(kernels.dtype)


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
