"""Launches of the kernels that see a window of pixels around each one, and their sizes."""

from collections.abc import Sequence

import torch

from acmix.backends.cuda.launcher import launch
from acmix.backends.cuda.sources import KERNEL_SIZES, TYPES
from acmix.backends.cuda.tiles import Pixels, check_plane
from acmix.checks import require
from acmix.geometry import can_reflect, output_size, usable_window


class Window:
    """The sizes that every kernel over windows of (B, C, H, W) takes."""

    def __init__(
        self,
        size: Sequence[int],
        dtype: torch.dtype,
        kernel_size: int,
        stride: int,
        dilation: int,
        reflect: bool,
    ) -> None:
        pad = dilation * (kernel_size // 2)
        fits = not reflect or can_reflect(size, pad)
        require(fits, "padding", pad, f"is too wide to reflect a map of {tuple(size)}")
        # Offsets beyond the map are all alike, but each has a weight or a difference of its own.
        _, stride, dilation = usable_window(size, kernel_size, stride, dilation)
        check_plane(size, kernel_size, stride, dilation)
        self.dtype, self.kernel_size, self.in_size = dtype, kernel_size, tuple(size)
        self.out_size = output_size(size, stride)
        window = (kernel_size, stride, dilation, reflect)
        self.sizes = (*self.in_size, *self.out_size, *window)

    def run(self, stem: str, part: str, cut: Pixels, args: tuple) -> None:
        """Launch one kernel with the kernel size compiled in where there is such a one."""
        size = self.kernel_size if self.kernel_size in KERNEL_SIZES else 0
        name = f"{stem}_{part}<{TYPES[self.dtype]}, {size}>"
        launch(stem, name, cut.grid, cut.block, args)
