"""Sizes and borders that the reference and every backend share."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.tracing import Size, is_known, is_written_down


def can_reflect(size: Sequence[int], pad: int) -> bool:
    """Whether a map of ``size`` (H, W) can be reflected by ``pad`` pixels, the edge not repeated.

    On a smaller map the sliding window is cut to the image instead (both axes alike).
    """
    height, width = size
    return pad < height and pad < width


def output_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """(H, W) of a strided output: ceil(size / stride), since output p sits at input stride * p."""
    height, width = size
    return ceil_div(height, stride), ceil_div(width, stride)


def ceil_div(size: int, by: int) -> int:
    """``size / by``, rounded up. ``-(-size // by)`` is not: integer division of ONNX truncates."""
    return (size + by - 1) // by


def missing(size: int, multiple: int) -> int:
    """What a size lacks to be a multiple."""
    return ceil_div(size, multiple) * multiple - size


def neighbour_rows(
    x: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1, reflect: bool = True
) -> list[Tensor]:
    """The map at every offset of a k×k neighbourhood, one row of offsets a tensor.

    Args:
        x: (B, ..., H, W).
        kernel_size: k, odd.
        stride: Distance of neighbouring outputs, in pixels.
        dilation: Distance of neighbouring offsets, in pixels.
        reflect: Whether positions outside are reflected, or zero; of an unknown size, reflected
            where ``can_reflect``.

    Returns:
        k tensors (B, ..., k, ceil(H / stride), ceil(W / stride)), views of one padded map; of one
        with k copies of each column where the call is written down.
    """
    size = x.shape[-2:]
    if not reflect and is_known(*size):
        _, stride, dilation = usable_window(size, kernel_size, stride, dilation)
    padded = _padded(x, dilation * (kernel_size // 2), reflect)
    reach = dilation * (kernel_size - 1)
    if is_written_down():
        # A gather is one node, and serves any size in every exporter.
        offset = torch.arange(kernel_size, device=x.device)[:, None] * dilation
        start = torch.arange(ceil_div(size[1], stride), device=x.device) * stride
        columns = padded[..., offset + start].transpose(-2, -3)
    else:
        columns = padded.unfold(-1, reach + 1, stride)[..., ::dilation].movedim(-1, -3)
    # By index, `columns[..., y, :]` is two nodes of a written call.
    rows = _offsets(reach, stride, dilation)
    return [torch.ops.aten.slice(columns, -2, y.start, y.stop, y.step) for y in rows]


def shifts_of(padded: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1) -> list[Tensor]:
    """Views of a padded map, (..., H, W), one for every offset of a window, row by row."""
    slices = _offsets(dilation * (kernel_size - 1), stride, dilation)
    rows = [padded[..., y, :] for y in slices]
    return [row[..., x] for row in rows for x in slices]


def _offsets(reach: int, stride: int, dilation: int) -> list[slice]:
    """Slices of a padded axis, one for every offset."""
    # The end is counted from the end, where it is a number at any size.
    return [slice(start, start - reach or None, stride) for start in range(0, reach + 1, dilation)]


def _padded(x: Tensor, pad: int, reflect: bool) -> Tensor:
    """(B, ..., H, W) with a border of ``pad`` pixels, as in ``neighbour_rows``."""
    if reflect and not is_known(*x.shape[-2:]):
        return _gathered_border(x, pad)
    padded = F.pad(x.flatten(1, -3), (pad,) * 4, mode="reflect" if reflect else "constant")
    return padded.unflatten(1, x.shape[1:-2])


def _gathered_border(x: Tensor, pad: int) -> Tensor:
    """(B, ..., H, W) with a border that is reflected at sizes that can be, and zero at others."""
    height, width = x.shape[-2:]
    mirror = exceeds((height, width), pad, x.device)
    rows, cols = (torch.arange(size + 2 * pad, device=x.device) - pad for size in (height, width))
    inside = is_inside(rows, height, mirror).unsqueeze(1) & is_inside(cols, width, mirror)
    x = x.index_select(-2, on_map(rows, height)).index_select(-1, on_map(cols, width))
    return torch.where(inside, x, 0)


def exceeds(size: Sequence[int], length: int, device: torch.device) -> Tensor:
    """Whether both sides of a map are longer than ``length``, (1,), for sizes left open."""
    height, width = size
    lengths = torch.full((1,), length, device=device)
    return (lengths < height) & (lengths < width)


def on_map(index: Tensor, size: int) -> Tensor:
    """Positions on an axis of ``size``, for positions of which some are outside: reflected.

    Positions that are outside even so are moved to the first one.
    """
    last = size - 1
    return (last - (last - index.abs()).abs()).clamp(min=0)


def is_inside(index: Tensor, size: int, mirror: Tensor) -> Tensor:
    """Whether there is a pixel at these positions, reflected where ``mirror`` says so."""
    return mirror | (index >= 0) & (index < size)


def one_hot_shifts(kernel_size: int, like: Tensor) -> Tensor:
    """Kernels whose sum over taps is the sum of all k_c² shifts, (1, taps, k_c, k_c).

    Kernel i is one at (i // k_c, i % k_c) and zero elsewhere (paper Eq. 8–9).
    """
    taps = kernel_size**2
    eye = torch.eye(taps, dtype=like.dtype, device=like.device)
    return eye.view(1, taps, kernel_size, kernel_size)


def pad_missing(x: Tensor, pad: Sequence[Size]) -> Tensor:
    """``F.pad`` with zeros, but no copy of ``x`` where it is known that nothing is missing."""
    return x if is_known(*pad) and not any(pad) else F.pad(x, cast(list[int], pad))


def cropped(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of (B, H, W, C), which may be all."""
    if is_known(height, width):
        return x[:, :height, :width]
    # torch.export makes a guard of the question whether a slice is the whole.
    for dim, size in ((1, height), (2, width)):
        x = x.index_select(dim, torch.arange(size, device=x.device))
    return x


def pixel_grid(size: Sequence[int], like: Tensor) -> Tensor:
    """Coordinates (x, y) of every pixel of a map of ``size`` (H, W), from -1 to 1, (1, 2, H, W)."""
    height, width = size
    xs, ys = (_coordinates(length, like) for length in (width, height))
    return torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)])[None]


def _coordinates(length: int, like: Tensor) -> Tensor:
    """``linspace(-1, 1, length)``, for a length of any kind; -1 for one pixel."""
    # Half precision can't count the pixels of a long axis.
    dtype = torch.promote_types(like.dtype, torch.float32)
    index = torch.arange(length, dtype=dtype, device=like.device)
    return (index * (2 / index[-1:].clamp(min=1)) - 1).to(like.dtype)


def usable_window(
    size: Sequence[int], kernel_size: int, stride: int, dilation: int
) -> tuple[int, int, int]:
    """Kernel size, stride and dilation cut to what a map of ``size`` (H, W) can tell apart.

    Beyond these bounds a softmax over the window and the grid of outputs stay the same: neighbours
    further away than the map is long are all outside it, and so are outputs.
    """
    longest = max(*size, 1)
    dilation = min(dilation, longest)
    reach = ceil_div(longest, dilation)
    return min(kernel_size, 2 * reach + 1), min(stride, longest), dilation
