"""Compiled CPU kernels (``acmix/csrc/cpu``), built on first use where a compiler is at hand.

float32 and float64 run as they are; float16 and bfloat16 are computed in float32. Sums over the
channels and the window are kept in that type, and results don't depend on the number of threads.
"""

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.kernel_calls import (
    KERNEL_OPS,
    neighbourhood_aggregation,
    neighbourhood_difference,
    sliding_window_attention,
)
from acmix.geometry import can_reflect, output_size
from acmix.native import library

__all__ = [
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "sliding_window_attention",
    "why_not",
]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def _library_problem() -> str | None:
    return library.problem()


def why_not(op: str, x: Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x``."""
    reasons = []
    if op not in KERNEL_OPS:
        reasons.append("torch's own kernels are the fast ones for it")
    if x.dtype not in _DTYPES:
        reasons.append(f"dtype {x.dtype} is not floating point")
    if x.device.type != "cpu":
        reasons.append(f"the tensors are on {x.device}")
    # Last, and only for calls that could run: finding out may build the library.
    problem = _library_problem() if not reasons else None
    return reasons if problem is None else [f"the CPU kernels are missing: {problem}"]


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


def _computable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the kernels compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _share_weights(x: Tensor, w: Tensor) -> Tensor:
    """(B, C, H, W) as (B, Cw, C / Cw, H, W): channels that share the weights c mod Cw together."""
    groups = w.shape[1]
    return x.unflatten(1, (x.shape[1] // groups, groups)).transpose(1, 2)
