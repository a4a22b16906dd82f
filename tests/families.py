"""The backbones that the shared tests run over: small ones to step, full ones to count."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from acmix_pvt import ACmixPVT
from acmix_resnet import ACmixResNet
from acmix_swin import ACmixSwinTransformer


@dataclass
class Family:
    """One backbone.

    Attributes:
        build: Makes a small backbone of four stages from keyword arguments.
        channels: Channels of its four feature maps.
        full: Name of a paper's model to (constructor, features of the head).
    """

    build: Callable[..., nn.Module]
    channels: tuple[int, ...]
    full: dict[str, tuple[Callable[[], nn.Module], int]] = field(default_factory=dict)


FAMILIES = {
    "resnet": Family(
        build=lambda **options: ACmixResNet(26, stem_channels=8, base_channels=4, **options),
        channels=(16, 32, 64, 128),
        full={
            f"ResNet-ACmix-{depth}": (lambda depth=depth: ACmixResNet(depth), 2048)
            for depth in (26, 38, 50)
        },
    ),
    "pvt": Family(
        build=lambda **options: ACmixPVT(
            dict(
                embed_dims=[8, 16, 20, 32],
                depths=[2, 2, 2, 2],
                num_heads=[1, 2, 5, 4],
                mlp_ratios=[2, 2, 2, 2],
                sr_ratios=[8, 4, 2, 1],
            ),
            img_size=64,
            out_type="featmap",
            **options,
        ),
        channels=(8, 16, 20, 32),
        full={
            "PVT-ACmix-T": (lambda: ACmixPVT("tiny"), 512),
            "PVT-ACmix-S": (lambda: ACmixPVT("small"), 512),
        },
    ),
    "swin": Family(
        build=lambda **options: ACmixSwinTransformer(
            dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 4]), **options
        ),
        channels=(8, 16, 32, 64),
        full={
            "Swin-ACmix-T": (lambda: ACmixSwinTransformer("tiny"), 768),
            "Swin-ACmix-S": (lambda: ACmixSwinTransformer("small"), 768),
        },
    ),
}
