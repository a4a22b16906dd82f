"""Aggregation of a neighbourhood in plain torch."""

from torch import Tensor

from acmix.geometry import neighbours
from acmix.tracing import unflatten


def neighbourhood_aggregation(
    v: Tensor, w: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_aggregation``; offset by offset, no k²-fold copy of the values."""
    dtype = v.dtype
    if dtype.itemsize == 2:
        # Sums of half precision products, and of their gradients, are kept in single precision.
        v, w = v.float(), w.float()
    v = unflatten(v, 1, (-1, w.shape[1]))
    shifted = neighbours(v, kernel_size, stride, dilation, reflect)
    terms = (w[:, None, :, o] * x for o, x in enumerate(shifted))
    return sum(terms, start=v.new_zeros(())).flatten(1, 2).to(dtype)
