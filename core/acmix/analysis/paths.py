"""What each path adds to the output of a layer, over the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acmix.analysis.observing import Call, added_paths, chosen_calls, evaluating


@dataclass
class PathMaps:
    """Both terms of alpha * F_att + beta * F_conv, each as its norm over the channels.

    Attributes:
        layer: Name of the layer in the model.
        attention: (B, H, W) over the image; ``None`` for a layer of convolution alone.
        convolution: The same; ``None`` for a layer of attention alone.
    """

    layer: str
    attention: Tensor | None
    convolution: Tensor | None

    @property
    def attention_share(self) -> float:
        """Mean norm of the attention term, as a share of the sum of both."""
        att, conv = (
            0.0 if x is None else float(x.mean()) for x in (self.attention, self.convolution)
        )
        return att / (att + conv) if att + conv > 0 else 0.0


@torch.no_grad()
def path_maps(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None
) -> list[PathMaps]:
    """Both paths' output maps of chosen layers, in the order of the calls.

    Args:
        model: Takes one tensor; its mode is put back.
        images: (B, C, H, W), as the model takes them.
        layers: Names of layers; the last one of every stage if ``None``.

    Raises:
        InputError: The model has no ACmix layer, or none of a name.
    """
    calls = chosen_calls(model, images, layers)
    with evaluating(model):
        return [_maps_of(call) for call in calls]


def _maps_of(call: Call) -> PathMaps:
    with added_paths(call.layer) as paths:
        call.repeat()
    att, conv, alpha = paths["attention"], paths["convolution"], call.layer.alpha()
    if att is not None and alpha is not None:
        att = att * alpha.to(att.dtype)
    norms = (None if x is None else call.on_image(call.as_maps(x).norm(dim=1)) for x in (att, conv))
    return PathMaps(call.name, *norms)
