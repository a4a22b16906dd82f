"""The layers as tests make them: small, from the same seed, with inputs of any size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acmix import ACmix2d, GlobalACmix, VectorACmix, WindowACmix


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        build: Makes it from keyword arguments.
        data: Its arguments for a batch and a size.
    """

    build: Callable[..., nn.Module]
    data: Callable[..., tuple]

    def make(self, **options) -> nn.Module:
        """The layer, from the same seed in every call."""
        torch.manual_seed(0)
        return self.build(**options)

    def inputs(self, height: int, width: int, batch: int = 2) -> tuple:
        """Arguments of a call; the first one is the tensor."""
        return self.data(batch, height, width)


def _images(batch: int, height: int, width: int) -> tuple[Tensor]:
    return (torch.randn(batch, 6, height, width),)


LAYERS = {
    "ACmix2d": Layer(lambda **options: ACmix2d(6, 8, 2, **options), _images),
    "WindowACmix": Layer(
        lambda **options: WindowACmix(8, (4, 3), 2, **options),
        lambda batch, height, width: (torch.randn(batch, height, width, 8),),
    ),
    "patchwise": Layer(lambda **options: VectorACmix(6, 16, 3, **options), _images),
    "pairwise": Layer(
        lambda **options: VectorACmix(6, 16, 3, attention="pairwise", **options), _images
    ),
    "GlobalACmix": Layer(
        lambda **options: GlobalACmix(8, 2, sr_ratio=2, **options),
        # One token in front of the pixels.
        lambda batch, height, width: (torch.randn(batch, 1 + height * width, 8), (height, width)),
    ),
}


def randomised(layer: nn.Module) -> nn.Module:
    """Parameters and statistics that hide no mistake: none at the start is zero or one."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for name, parameter in layer.named_parameters():
        if name.startswith(("rate", "dep_conv", "relative_position")):
            nn.init.normal_(parameter)
    return layer
