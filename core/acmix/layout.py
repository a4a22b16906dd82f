"""Memory formats and dtypes of maps, (B, N, D, H, W): the promises of fakes, kept by kernels."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from acmix.tracing import Size, unflatten

# Of the widest vectors of floats.
_LANES = 16


def is_channels_last(x: Tensor) -> bool:
    """Whether kernels write their results for maps like ``x``, (B, N, D, H, W), channels last.

    CUDA kernels write channels first only.
    """
    strides = x.stride()
    return x.device.type == "cpu" and x.shape[2] > 1 and strides[2] == 1 and strides[4] != 1


def new_map(new: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
    """(B, N, D, H, W) stored channels last, from a function that makes a tensor of a shape."""
    batch, heads, depth, height, width = shape
    return new((batch, height, width, heads, depth)).permute(0, 3, 4, 1, 2)


def empty_map(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """New (B, N, D, H, W) in the memory format of ``like``: channels last if that is."""

    def new(size: Sequence[int]) -> Tensor:
        return like.new_empty(size, dtype=dtype)

    return new_map(new, shape) if is_channels_last(like) else new(shape)


def empty_image(like: Tensor, shape: Sequence[int]) -> Tensor:
    """New (B, C, H, W) in the memory format of the maps ``like``, (B, N, D, H, W)."""
    last = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=last)


def new_image(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """New (B, C, H, W) on the CPU, channels last."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def image_of(tokens: Tensor, size: Sequence[Size]) -> Tensor:
    """Tokens (B, H * W, C) as an image (B, C, H, W), channels last.

    The stride of a batch of one says so too: of tokens that are transposed first it does not, and
    torch's operators then make the image anew, channels first.
    """
    return unflatten(tokens, 1, size).permute(0, 3, 1, 2)


def in_format_of(like: Tensor, x: Tensor) -> Tensor:
    """``x``, stored channels last, in the dtype and the memory format of the maps ``like``.

    Args:
        like: (B, N, D, H, W).
        x: Maps of that kind, or an image (B, C, H, W).
    """
    x = x.to(like.dtype)
    return x if is_channels_last(like) else x.contiguous()


def maps_of(qkv: Tensor, heads: int) -> Tensor:
    """Projections (B, 3N * D, H, W) as (B, 3N, D, H, W)."""
    return qkv.unflatten(1, (3 * heads, -1))


def channels_last(x: Tensor) -> Tensor:
    """(B, maps, D, H, W) with the channels of a map as neighbours in memory."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def computable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the CPU kernels compute in: half precision becomes float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def readable(x: Tensor) -> Tensor:
    """Maps (B, maps, D, H, W) in a dtype that the CPU kernels read: their own, or bfloat16.

    bfloat16 is widened row by row where the channels of a map are whole vectors in memory, and
    otherwise in whole, like float16.
    """
    is_fast = x.dtype == torch.bfloat16 and x.stride(2) == 1 and x.shape[2] % _LANES == 0
    return x if is_fast else computable(x)


class _Typed(Protocol):
    @property
    def dtype(self) -> torch.dtype:
        """That of its elements."""


def sum_dtype(x: _Typed) -> torch.dtype:
    """The dtype of sums over ``x``: float32 for half precision, else its own."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
