"""Differences of a pixel and its neighbourhood in plain torch."""

import torch
from torch import Tensor

from acmix.geometry import neighbour_rows


def neighbourhood_difference(
    a: Tensor, b: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_difference``."""
    dtype = a.dtype
    if dtype.itemsize == 2:
        # For the gradients, which sum k² numbers.
        a, b = a.float(), b.float()
    centre = a[..., None, ::stride, ::stride]
    rows = neighbour_rows(b, kernel_size, stride, dilation, reflect)
    return torch.cat([(centre - row).to(dtype) for row in rows], dim=2)
