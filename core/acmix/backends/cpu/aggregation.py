"""CPU kernels of the aggregation of a neighbourhood."""

from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.geometry import output_size, usable_window
from acmix.layout import computable
from acmix.ops.aggregation import neighbourhood_aggregation
from acmix.ops.registration import kernel

__all__ = ["neighbourhood_aggregation"]


@kernel(ops.aggregation, "CPU")
def _forward(
    v: Tensor, w: Tensor, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    _, stride, dilation = usable_window(v.shape[2:], kernel_size, stride, dilation)
    out = computable(v).new_empty((*v.shape[:2], *output_size(v.shape[2:], stride)))
    values = _share_weights(computable(v), w)
    library.load().run(
        "aggregation",
        library.window(values.shape, kernel_size, stride, dilation, reflect=reflect),
        dict(v=values, w=computable(w), out=_share_weights(out, w)),
    )
    return out.to(v.dtype)


@kernel(ops.aggregation_backward, "CPU")
def _backward(
    grad: Tensor,
    v: Tensor,
    w: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    reflect: bool,
) -> tuple[Tensor, Tensor]:
    _, stride, dilation = usable_window(v.shape[2:], kernel_size, stride, dilation)
    values, weights = _share_weights(computable(v), w), computable(w)
    dv, dw = values.new_empty(v.shape), weights.new_empty(w.shape)
    library.load().run(
        "aggregation",
        library.window(values.shape, kernel_size, stride, dilation, reflect=reflect, backward=True),
        dict(
            v=values,
            w=weights,
            grad=_share_weights(computable(grad), w),
            grad_v=_share_weights(dv, w),
            grad_w=dw,
        ),
    )
    return dv.to(v.dtype), dw.to(w.dtype)


def _share_weights(x: Tensor, w: Tensor) -> Tensor:
    """(B, C, H, W) as (B, Cw, C / Cw, H, W): channels that share the weights c mod Cw together."""
    groups = w.shape[1]
    return x.unflatten(1, (x.shape[1] // groups, groups)).transpose(1, 2)
