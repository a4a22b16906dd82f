"""The compiled operators on windows of pixels: attention, aggregation, differences.

Each has the arguments of its operator in ``acmix.ops``. Half precision is computed in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from acmix import ops
from acmix.geometry import can_reflect, output_size
from acmix.native import library


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Kernel of ``acmix::sliding_window_attention``."""
    out, lse = attend(*map(computable, (q, k, v)), None, (kernel_size, stride, dilation))
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
    maps = [computable(x) for x in (q, k, v)]
    grads = [ops.empty_map(x, x.shape) for x in maps]
    if stride > 1:
        grads[0].zero_()
    window = (kernel_size, stride, dilation)
    attend_backward(computable(grad), *maps, None, lse, window, grads)
    dq, dk, dv = (x.to(q.dtype) for x in grads)
    return dq, dk, dv


def attend(
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


def attend_backward(
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
    out = computable(v).new_empty((*v.shape[:2], *output_size(*v.shape[2:], stride)))
    values = _share_weights(computable(v), w)
    library.load().run(
        "aggregation_forward",
        [values, computable(w), _share_weights(out, w)],
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
    values, weights = _share_weights(computable(v), w), computable(w)
    dv, dw = values.new_empty(v.shape), weights.new_empty(w.shape)
    library.load().run(
        "aggregation_backward",
        [values, weights, _share_weights(computable(grad), w), _share_weights(dv, w), dw],
        (*values.shape, kernel_size, stride, dilation),
        reflect=reflect,
    )
    return dv.to(v.dtype), dw.to(w.dtype)


def subtraction_forward(
    a: Tensor, b: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Kernel of ``acmix::subtraction``."""
    size = output_size(*a.shape[2:], stride)
    out = computable(a).new_empty((*a.shape[:2], kernel_size**2, *size))
    library.load().run(
        "subtraction_forward",
        [computable(a).unsqueeze(2), computable(b).unsqueeze(2), out],
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
    grad32 = computable(grad)
    da, db = grad32.new_empty(a.shape), grad32.new_empty(b.shape)
    library.load().run(
        "subtraction_backward",
        [grad32, da.unsqueeze(2), db.unsqueeze(2)],
        (*a.shape[:2], 1, *a.shape[2:], kernel_size, stride, dilation),
        reflect=reflect,
    )
    return da.to(a.dtype), db.to(b.dtype)


def computable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the kernels compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _share_weights(x: Tensor, w: Tensor) -> Tensor:
    """(B, C, H, W) as (B, Cw, C / Cw, H, W): channels that share the weights c mod Cw together."""
    groups = w.shape[1]
    return x.unflatten(1, (x.shape[1] // groups, groups)).transpose(1, 2)
