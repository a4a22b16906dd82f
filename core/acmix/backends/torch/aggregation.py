"""Aggregation of a neighbourhood in plain torch."""

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
    weights = w.split(kernel_size, dim=2)
    terms = ((a[:, None] * row).sum(3) for a, row in zip(weights, rows, strict=True))
    return sum(terms, start=v.new_zeros(())).flatten(1, 2).to(dtype)
