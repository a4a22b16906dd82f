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
    def of(cls, maps: Tensor) -> "Maps":
        """Of a tensor as it is."""
        return cls(maps, maps.shape, maps.stride())

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
    def of_pixels(cls, numbers: Tensor, like: "Maps") -> "Maps":
        """Of (D, H, W) numbers for every image and map of ``like``."""
        return cls(numbers, like.shape, (0, 0, *numbers.stride()))

    @classmethod
    def of_channels(cls, numbers: Tensor, like: "Maps") -> "Maps":
        """Of one number for all of ``like``, or (N * D, 1, 1) for its channels n * D + d."""
        of_all = numbers.numel() == 1
        return cls(numbers, like.shape, (0, 0 if of_all else like.shape[2], int(not of_all), 0, 0))

    def parts(self, count: int) -> list["Maps"]:
        """So many equal parts of these maps, in their order."""
        batch, maps, *rest = self.shape
        shape, step = (batch, maps // count, *rest), maps // count * self.strides[1]
        places = (self.offset + i * step for i in range(count))
        return [Maps(self.tensor, shape, self.strides, place) for place in places]

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
