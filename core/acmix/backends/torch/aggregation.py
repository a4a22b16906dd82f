"""Aggregation of a neighbourhood in plain torch."""

from functools import reduce
from operator import add

from torch import Tensor

from acmix.geometry import neighbour_rows
from acmix.tracing import unflatten


def neighbourhood_aggregation(
    v: Tensor, w: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_aggregation``; row by row, no k²-fold copy of the values."""
    dtype = v.dtype
    if dtype.itemsize == 2:
        # Sums of half precision products, and of their gradients, are kept in single precision.
        v, w = v.float(), w.float()
    v = unflatten(v, 1, (-1, w.shape[1]))
    rows = neighbour_rows(v, kernel_size, stride, dilation, reflect)
    weights = w.unsqueeze(1).split(kernel_size, dim=3)
    terms = ((a * row).sum(3) for a, row in zip(weights, rows, strict=True))
    return reduce(add, terms).flatten(1, 2).to(dtype)
