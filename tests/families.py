"""The backbones that the shared tests run over: small ones to step, full ones to count."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from acmix_pvt import ACmixPVT
from acmix_resnet import ACmixResNet
from acmix_san import ACmixSAN
from acmix_swin import ACmixSwinTransformer


@dataclass
class Family:
    """One backbone.

    Attributes:
        build: Makes a small backbone from keyword arguments.
        channels: Channels of its feature maps.
        first_stride: Stride of the first map; each next one has twice that.
        full: Name of a model of the metafile to (constructor, features of the head).
    """

    build: Callable[..., nn.Module]
    channels: tuple[int, ...]
    first_stride: int = 4
    full: dict[str, tuple[Callable[[], nn.Module], int]] = field(default_factory=dict)

    @property
    def every_stage(self) -> tuple[int, ...]:
        """Indices of all feature maps."""
        return tuple(range(len(self.channels)))

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Sizes of the feature maps of an image."""
        strides = [self.first_stride * 2**stage for stage in self.every_stage]
        return [(-(-height // stride), -(-width // stride)) for stride in strides]


FAMILIES = {
    "resnet": Family(
        build=lambda **options: ACmixResNet(26, stem_channels=8, base_channels=4, **options),
        channels=(16, 32, 64, 128),
        full={
            f"ResNet-ACmix-{depth}": (lambda depth=depth: ACmixResNet(depth), 2048)
            for depth in (26, 38, 50)
        },
    ),
    "san": Family(
        build=lambda **options: ACmixSAN(
            10, widths=(32, 32, 32, 64, 64), stem_channels=8, **options
        ),
        channels=(32, 32, 32, 64, 64),
        first_stride=2,
        full={
            f"SAN-ACmix-{depth}": (lambda depth=depth: ACmixSAN(depth), 2048)
            for depth in (10, 15, 19)
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
            "PVT-ACmix-M": (lambda: ACmixPVT("medium"), 512),
            "PVT-ACmix-L": (lambda: ACmixPVT("large"), 512),
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
            "Swin-ACmix-B": (lambda: ACmixSwinTransformer("base"), 1024),
        },
    ),
}
