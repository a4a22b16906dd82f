"""Sizes and borders that the reference and every backend share."""

import torch
from torch import Tensor


def can_reflect(height: int, width: int, pad: int) -> bool:
    """Whether a height×width map can be reflected by ``pad`` pixels without repeating its edge.

    On a smaller map the sliding window is cut to the image instead (both axes alike).
    """
    return pad < height and pad < width


def output_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Size of a strided output: ceil(size / stride), since output p sits at input stride * p."""
    return -(-height // stride), -(-width // stride)


def one_hot_shifts(kernel_size: int, like: Tensor) -> Tensor:
    """Kernels whose sum over taps is the sum of all k_c² shifts, (1, taps, k_c, k_c).

    Kernel i is one at (i // k_c, i % k_c) and zero elsewhere (paper Eq. 8–9).
    """
    taps = kernel_size**2
    eye = torch.eye(taps, dtype=like.dtype, device=like.device)
    return eye.view(1, taps, kernel_size, kernel_size)
