"""Alpha and beta of every layer, as in the paper's Figure 5."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acmix.analysis.observing import layers_of
from acmix.checks import require
from acmix.modules import ACmixBase


@dataclass
class MixingRates:
    """How a layer weighs its paths.

    Attributes:
        layer: Its name in the model.
        alpha: Rate of the attention, 0 for a layer of convolution alone.
        beta: Rate of the convolution path, 0 for a layer of attention alone.
    """

    layer: str
    alpha: float
    beta: float

    @property
    def log_ratio(self) -> float:
        """log|alpha / beta|: above 0 where attention weighs more; infinite where a path is off."""
        if self.alpha == 0 or self.beta == 0:
            return math.copysign(math.inf, abs(self.alpha) - abs(self.beta))
        return math.log(abs(self.alpha / self.beta))


@torch.no_grad()
def mixing_rates(model: nn.Module) -> list[MixingRates]:
    """Alpha and beta of every ACmix layer, in the order of the model's modules.

    They are read from the device at once.

    Raises:
        InputError: The model has no ACmix layer, or a layer is deployed, whose rates are folded.
    """
    layers = layers_of(model)
    for name, layer in layers.items():
        remedy = "alpha and beta are folded into its weights; take the model before it is deployed"
        require(not layer.deployed, "deployed layer", name, remedy)
    rates = torch.stack([rate for layer in layers.values() for rate in _rates(layer)])
    pairs = rates.view(-1, 2).tolist()
    return [MixingRates(name, *pair) for name, pair in zip(layers, pairs, strict=True)]


def _rates(layer: ACmixBase) -> tuple[Tensor, Tensor]:
    """Alpha and beta, each a float32 scalar."""
    like = next(layer.parameters())
    paths = (layer.has_attention, layer.alpha()), (layer.has_convolution, layer.beta())
    alpha, beta = (
        like.new_tensor(float(there)) if rate is None or not there else rate.squeeze()
        for there, rate in paths
    )
    return alpha.float(), beta.float()
