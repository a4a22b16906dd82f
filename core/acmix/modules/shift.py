"""The shift kernels of the convolution path and the variants of the paper's Table 7."""

import torch
from torch import nn

from acmix.checks import check_choice
from acmix.geometry import one_hot_shifts

SHIFT_MODES = ("tensor", "fixed", "random", "learnable")


class ShiftKernels(nn.Module):
    """The k_c² × k_c × k_c kernels of every output channel.

    Deliberately not an ``nn.Conv2d``: the weight initialisation of a backbone goes by layer class,
    and would overwrite the shifts, as it does in the authors' ResNet.

    Args:
        head_dim: Number of groups, D.
        num_heads: Output channels a group, N.
        kernel_size: k_c, odd.
        mode: ``"learnable"`` (initialised to the shifts, N kernels a group), ``"random"``
            (learnable, random start), ``"fixed"`` (the shifts, not learnable, one kernel a group
            whose output serves all N channels) or ``"tensor"`` (the same by moving tensors).

    Shape:
        ``weight``: (D * N, k_c², k_c, k_c), or (D, k_c², k_c, k_c) when fixed.
    """

    def __init__(self, head_dim: int, num_heads: int, kernel_size: int, mode: str) -> None:
        super().__init__()
        check_choice("shift", mode, SHIFT_MODES)
        self.head_dim, self.num_heads, self.kernel_size = head_dim, num_heads, kernel_size
        self.mode = mode
        self.learnable = mode in ("learnable", "random")
        rows = head_dim * (num_heads if self.learnable else 1)
        weight = torch.empty(rows, kernel_size**2, kernel_size, kernel_size)
        if self.learnable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the kernels to their start: the shifts, or random numbers in mode ``"random"``."""
        if self.mode == "random":
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        else:
            with torch.no_grad():
                self.weight.copy_(one_hot_shifts(self.kernel_size, like=self.weight))

    def extra_repr(self) -> str:
        """Sizes and mode, for ``print(module)``."""
        size = (self.kernel_size,) * 2
        return f"{tuple(self.weight.shape)}, kernel_size={size}, mode={self.mode!r}"
