"""Activation checkpointing of MMPretrain's blocks."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Mixin before a block of MMPretrain: ``with_cp`` by the kind of checkpoint without reentry.

    MMPretrain's own kind, with reentry, refuses ``torch.autograd.grad``, breaks a compiled graph,
    and warns at every step.
    """

    recompute = False
    with_cp: bool

    def take_with_cp(self) -> None:
        """Do here what ``with_cp`` says, and not in the parent's forward."""
        self.recompute, self.with_cp = self.with_cp, False

    def forward(self, x: Tensor, *args) -> Tensor:
        """The parent's forward; its activations are computed again in the backward pass."""
        if self.recompute and x.requires_grad:
            return checkpoint(super().forward, x, *args, use_reentrant=False)
        return super().forward(x, *args)
