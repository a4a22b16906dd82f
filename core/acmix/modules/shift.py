"""The shift kernels of the convolution path and the variants of the paper's Table 7."""

import torch
from torch import Tensor, nn

from acmix.checks import check_choice
from acmix.geometry import one_hot_shifts
from acmix.tracing import as_number, is_written_down

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
        Returns (D * N, k_c², k_c, k_c) of ``weight``, or (D, k_c², k_c, k_c), which is no state,
        when fixed.
    """

    def __init__(self, head_dim: int, num_heads: int, kernel_size: int, mode: str) -> None:
        super().__init__()
        check_choice("shift", mode, SHIFT_MODES)
        self.head_dim, self.num_heads, self.kernel_size = head_dim, num_heads, kernel_size
        self.mode = mode
        self.learnable = mode in ("learnable", "random")
        if self.learnable:
            size = (head_dim * num_heads, kernel_size**2, kernel_size, kernel_size)
            self.weight = nn.Parameter(torch.empty(size))
            self.reset_parameters()

    @classmethod
    def of(cls, kernels: Tensor, head_dim: int) -> "ShiftKernels":
        """Learned kernels (C, maps, k_c, k_c), of as many maps as they read."""
        made = cls(head_dim, len(kernels) // head_dim, kernels.shape[-1], "learnable")
        made.weight = nn.Parameter(kernels.clone())
        return made

    def reset_parameters(self) -> None:
        """Set the kernels to their start: the shifts, or random numbers in mode ``"random"``."""
        if self.mode == "random":
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        elif self.learnable:
            with torch.no_grad():
                self.weight.copy_(one_hot_shifts(self.kernel_size, like=self.weight))

    @property
    def inputs(self) -> int:
        """Maps that a group reads: the taps, or those that are folded into learned kernels."""
        return as_number(self.weight.shape[1]) if self.learnable else self.kernel_size**2

    def forward(self, like: Tensor) -> Tensor:
        """The kernels; those that are not learnable are made here, in the kind of ``like``."""
        if self.learnable:
            # Counters look for the graph of what a module returns; without gradients the parameter
            # itself has none. What is written down trains as well where it is made without them.
            keep = torch.is_grad_enabled() or is_written_down()
            return self.weight if keep else self.weight.detach()
        shifts = one_hot_shifts(self.kernel_size, like)
        return shifts.expand(self.head_dim, *shifts.shape[1:])

    def extra_repr(self) -> str:
        """Sizes and mode, for ``print(module)``."""
        return (
            f"{self.head_dim}, {self.num_heads}, kernel_size={(self.kernel_size,) * 2}, "
            f"mode={self.mode!r}"
        )
