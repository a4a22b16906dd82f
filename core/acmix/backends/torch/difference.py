"""Differences of a pixel and its neighbourhood in plain torch."""

import torch
from torch import Tensor

from acmix.geometry import neighbours


def neighbourhood_difference(
    a: Tensor, b: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_difference``."""
    dtype = a.dtype
    if dtype.itemsize == 2:
        # For the gradients, which sum k² numbers.
        a, b = a.float(), b.float()
    centre = a[..., ::stride, ::stride]
    shifted = neighbours(b, kernel_size, stride, dilation, reflect)
    return torch.stack([(centre - x).to(dtype) for x in shifted], dim=2)
