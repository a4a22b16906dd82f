"""Maps as the CPU kernels read and write them: memory of a tensor under strides of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Maps:
    """Maps (B, N, D, H, W) in the memory of a tensor.

    A view of torch's would do, but takes as long to make as a kernel takes for a small map.

    Args:
        tensor: Whose memory it is.
        shape: Five sizes.
        strides: Theirs, in elements.
        offset: Of the first element, in elements.
    """

    __slots__ = ("offset", "shape", "strides", "tensor")

    def __init__(
        self, tensor: Tensor, shape: Sequence[int], strides: Sequence[int], offset: int = 0
    ) -> None:
        self.tensor, self.shape, self.strides, self.offset = tensor, shape, strides, offset

    @classmethod
    def of_image(cls, image: Tensor, maps: int) -> "Maps":
        """Of an image (B, N * D, H, W) in channel order n * D + d; ``maps`` is N."""
        (batch, channels, *size), (b, c, *pixel) = image.shape, image.stride()
        depth = channels // maps
        return cls(image, (batch, maps, depth, *size), (b, depth * c, c, *pixel))

    @classmethod
    def of_groups(cls, image: Tensor, depth: int) -> "Maps":
        """Of an image (B, D * N, H, W) in channel order d * N + n; ``depth`` is D."""
        (batch, channels, *size), (b, c, *pixel) = image.shape, image.stride()
        maps = channels // depth
        return cls(image, (batch, maps, depth, *size), (b, c, maps * c, *pixel))

    @classmethod
    def of_sums(cls, sums: Tensor) -> "Maps":
        """Of one number a head and pixel, (B, N, H, W): D is 1."""
        (batch, heads, *size), (b, n, *pixel) = sums.shape, sums.stride()
        return cls(sums, (batch, heads, 1, *size), (b, n, 0, *pixel))

    @classmethod
    def part_of(cls, maps: Tensor, index: int, parts: int) -> "Maps":
        """One of so many equal parts of maps (B, maps, D, H, W), in their order."""
        (batch, count, *rest), strides = maps.shape, maps.stride()
        count //= parts
        return cls(maps, (batch, count, *rest), strides, index * count * strides[1])

    @property
    def dtype(self) -> torch.dtype:
        """That of the tensor."""
        return self.tensor.dtype

    def stride(self) -> Sequence[int]:
        """Strides in elements, as those of a tensor are asked for."""
        return self.strides

    def data_ptr(self) -> int:
        """Address of the first element, as that of a tensor is asked for."""
        return self.tensor.data_ptr() + self.offset * self.tensor.itemsize
