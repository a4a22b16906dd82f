"""Sizes and borders that the reference and every backend share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def can_reflect(size: Sequence[int], pad: int) -> bool:
    """Whether a map of ``size`` (H, W) can be reflected by ``pad`` pixels, the edge not repeated.

    On a smaller map the sliding window is cut to the image instead (both axes alike).
    """
    height, width = size
    return pad < height and pad < width


def output_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """(H, W) of a strided output: ceil(size / stride), since output p sits at input stride * p."""
    height, width = size
    return -(-height // stride), -(-width // stride)


def neighbours(
    x: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1, reflect: bool = True
) -> list[Tensor]:
    """The map at every offset of a k×k neighbourhood, row by row; views of one padded map.

    Args:
        x: (B, ..., H, W).
        kernel_size: k, odd.
        stride: Distance of neighbouring outputs, in pixels.
        dilation: Distance of neighbouring offsets, in pixels.
        reflect: Whether positions outside are reflected, or zero.

    Returns:
        k² views (B, ..., ceil(H / stride), ceil(W / stride)).
    """
    height, width = x.shape[-2:]
    if not reflect:
        _, stride, dilation = usable_window((height, width), kernel_size, stride, dilation)
    pad = dilation * (kernel_size // 2)
    padded = F.pad(x.flatten(1, -3), (pad,) * 4, mode="reflect" if reflect else "constant")
    padded = padded.unflatten(1, x.shape[1:-2])
    starts = range(0, kernel_size * dilation, dilation)
    return [
        padded[..., y : y + height : stride, x : x + width : stride] for y in starts for x in starts
    ]


def one_hot_shifts(kernel_size: int, like: Tensor) -> Tensor:
    """Kernels whose sum over taps is the sum of all k_c² shifts, (1, taps, k_c, k_c).

    Kernel i is one at (i // k_c, i % k_c) and zero elsewhere (paper Eq. 8–9).
    """
    taps = kernel_size**2
    eye = torch.eye(taps, dtype=like.dtype, device=like.device)
    return eye.view(1, taps, kernel_size, kernel_size)


def pad_missing(x: Tensor, pad: tuple[int, ...]) -> Tensor:
    """``F.pad`` with zeros, which copies ``x`` even where there is nothing to pad."""
    return F.pad(x, pad) if any(pad) else x


def pixel_grid(size: Sequence[int], like: Tensor) -> Tensor:
    """Coordinates (x, y) of every pixel of a map of ``size`` (H, W), from -1 to 1, (1, 2, H, W)."""
    height, width = size
    xs = torch.linspace(-1, 1, width, dtype=like.dtype, device=like.device).expand(height, width)
    ys = torch.linspace(-1, 1, height, dtype=like.dtype, device=like.device)
    ys = ys[:, None].expand(height, width)
    return torch.stack([xs, ys])[None]


def usable_window(
    size: Sequence[int], kernel_size: int, stride: int, dilation: int
) -> tuple[int, int, int]:
    """Kernel size, stride and dilation cut to what a map of ``size`` (H, W) can tell apart.

    Beyond these bounds a softmax over the window and the grid of outputs stay the same: neighbours
    further away than the map is long are all outside it, and so are outputs.
    """
    longest = max(*size, 1)
    dilation = min(dilation, longest)
    reach = -(-longest // dilation)
    return min(kernel_size, 2 * reach + 1), min(stride, longest), dilation
