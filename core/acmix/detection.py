"""Backbones in the detectors of torchvision: a feature pyramid on the maps of any of them."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acmix.checks import check_positive, require

try:
    from torchvision.ops.feature_pyramid_network import (
        ExtraFPNBlock,
        FeaturePyramidNetwork,
        LastLevelMaxPool,
    )
except ImportError as error:
    raise ImportError("acmix.detection needs torchvision: pip install torchvision") from error


class BackboneWithFPN(nn.Module):
    """A backbone and a feature pyramid, as the detectors of torchvision want it.

    Its parameters are named as those of torchvision's own, ``body`` and ``fpn``.

    Args:
        body: Gives a tuple of maps, the largest first.
        fpn: The pyramid on these maps.
        out_channels: Channels of every map of the pyramid.
    """

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps of the pyramid: "0", "1", ..., then those of the extra blocks."""
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(x))))


def fpn_backbone(
    backbone: nn.Module,
    out_channels: int = 256,
    *,
    extra_blocks: ExtraFPNBlock | None = None,
    in_channels_list: Sequence[int] | None = None,
) -> BackboneWithFPN:
    """A feature pyramid on a backbone, for ``torchvision.models.detection``.

    Four maps and the pooled one are the five for which ``FasterRCNN``, ``MaskRCNN`` and
    ``RetinaNet`` have anchors; three maps with ``LastLevelP6P7`` are torchvision's RetinaNet. For
    any other number give the detector an ``AnchorGenerator`` with one tuple of sizes a map, and
    ``FasterRCNN`` and ``MaskRCNN`` their poolers too.

    Args:
        backbone: Gives a tuple of maps (B, C, H, W), the largest first: any of ours, with
            ``out_indices``, and for ``ACmixPVT`` ``out_type="featmap"``. It is used, not copied.
        out_channels: Channels of every map of the pyramid.
        extra_blocks: More maps at the end; one pooled from the last if ``None``.
        in_channels_list: Channels of the maps; seen in a pass of one 64×64 RGB image if ``None``.

    Returns:
        A module with ``out_channels``, from images to an ordered dict of maps.

    Raises:
        InputError: The backbone's output is no tuple of maps, or a number is wrong.
    """
    check_positive("out_channels", out_channels)
    in_channels_list = list(in_channels_list or _channels(backbone))
    extra_blocks = extra_blocks or LastLevelMaxPool()
    fpn = FeaturePyramidNetwork(in_channels_list, out_channels, extra_blocks)
    return BackboneWithFPN(backbone, fpn, out_channels)


@torch.no_grad()
def _channels(backbone: nn.Module) -> list[int]:
    """Channels of the maps; a copy makes the pass, so modes and statistics stay as they are."""
    parameter = next(backbone.parameters())
    image = torch.zeros(1, 3, 64, 64, dtype=parameter.dtype, device=parameter.device)
    maps = copy.deepcopy(backbone).eval()(image)
    kind = type(maps).__name__
    remedy = "give one with a tuple of maps, by out_indices or out_type='featmap'"
    require(isinstance(maps, tuple | list), "backbone output", kind, remedy)
    for m in maps:
        require(m.dim() == 4, "backbone output shape", tuple(m.shape), remedy)
    heights = [m.shape[2] for m in maps]
    ordered = heights == sorted(heights, reverse=True)
    require(ordered, "heights of the backbone's maps", heights, "give the largest first")
    return [m.shape[1] for m in maps]
