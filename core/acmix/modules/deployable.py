"""The deploy form of a layer: what is constant once training is over, folded."""

import copy
from typing import Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acmix.checks import require
from acmix.errors import InputError
from acmix.modules.children import affine_of, has_statistics


class Deployable(nn.Module):
    """Base of layers with a deploy form; subclasses say what is folded."""

    # Whether a BatchNorm can follow: the output is (B, C, H, W).
    takes_norm = False
    deployed = False

    dim: int

    @torch.no_grad()
    def switch_to_deploy(self, norm: nn.Module | None = None) -> None:
        """Fold what is constant once training is over, in place; the outputs stay the same.

        One projection for q, k and v; beta, the shift kernels and, where that is cheaper, the layer
        over the maps in one kernel; positions made once a size. Products are taken in float64 and
        rounded once. A deployed layer doesn't train: for that make a fresh one, and load the
        weights that were saved before.

        Args:
            norm: A BatchNorm that alone reads the output of this layer. It becomes part of the
                layer, and is to be taken out of the network.

        Raises:
            InputError: The norm, or a child of the layer, is no fixed affine map.
        """
        parameter = next(self.parameters())
        dtype, device = parameter.dtype, parameter.device
        require(device.type != "meta", "device", device, "load the weights before deploying")
        affine = None if norm is None else self._affine_of(norm)
        if self.deployed and affine is None:
            return
        self.eval().to("cpu", torch.float64)
        try:
            if not self.deployed:
                self._fold()
                self.deployed = True
            if affine is not None:
                self._fold_norm(*affine)
        finally:
            self.to(device, dtype)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode.

        Raises:
            InputError: The layer is deployed, and the mode is training.
        """
        if mode:
            self._refuse_deployed("train()")
        return super().train(mode)

    def _refuse_deployed(self, call: str) -> None:
        remedy = "the weights are folded; make a fresh model and load what was saved before"
        require(not self.deployed, f"{call} of a deployed layer", type(self).__name__, remedy)

    def _fold(self) -> None:
        """Fold the parts of the layer; its weights are in float64 on the CPU."""
        raise NotImplementedError

    def _fold_norm(self, scale: Tensor, offset: Tensor) -> None:
        """Multiply the output by a scale and add an offset, each (C,)."""
        raise NotImplementedError

    def _affine_of(self, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Scale and offset of a norm behind the layer, each (C,), in float64."""
        kind = type(self).__name__
        require(self.takes_norm, "norm", repr(norm), f"no BatchNorm can follow a {kind}")
        if not (is_foldable(norm) and norm.num_features == self.dim):
            wanted = f"a BatchNorm2d({self.dim}) in evaluation, with statistics and weights"
            raise InputError(f"norm={norm}: give {wanted}")
        return affine_of(copy.deepcopy(norm).to("cpu", torch.float64))


def is_foldable(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module is a BatchNorm, and as it stands a fixed affine map."""
    return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and has_statistics(norm)
