"""Sliding window attention by rows of the window, where no pixel reaches further than its window.

A tile multiplies keys outside a query's window by zero, and zero times NaN is NaN: one in the maps
spreads over all tiles that read it, in the output and again in the gradient. Here only the window
is read, which takes several times as long.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from acmix.backends.derivatives import is_transformed
from acmix.backends.torch.aggregation import neighbourhood_aggregation
from acmix.geometry import can_reflect, neighbour_rows, usable_window
from acmix.tracing import is_written_down


def is_needed(out: Tensor) -> bool:
    """Whether the tiles' result has a NaN, where asking costs next to nothing.

    A call that is compiled, recorded or transformed can't ask, and a device would have to be waited
    for.
    """
    recorded = torch.compiler.is_compiling() or is_written_down()
    if recorded or is_transformed() or _get_current_dispatch_mode() is not None:
        return False
    return type(out) is Tensor and out.device.type == "cpu" and bool(out.detach().sum().isnan())


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """See ``acmix.sliding_window_attention``; the position is in the keys already."""
    heads, size = q.shape[1], q.shape[-2:]
    if q.dtype.itemsize == 2:
        q, k = q.float(), k.float()
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    reflect = can_reflect(size, dilation * (kernel_size // 2))
    if not reflect:
        kernel_size, stride, dilation = usable_window(size, kernel_size, stride, dilation)

    def around(x: Tensor) -> list[Tensor]:
        return neighbour_rows(x, kernel_size, stride, dilation, reflect)

    query = q[..., None, ::stride, ::stride] * q.shape[1] ** -0.5
    logits = [
        (query * keys).sum(dim=1).masked_fill(inside[:, 0] == 0, float("-inf"))
        for keys, inside in zip(around(k), around(q.new_ones(1, 1, *size)), strict=True)
    ]
    weights = torch.cat(logits, dim=1).softmax(dim=1).unsqueeze(1)
    out = neighbourhood_aggregation(
        v, weights, kernel_size=kernel_size, stride=stride, dilation=dilation, reflect=reflect
    )
    return out.unflatten(0, (-1, heads))
