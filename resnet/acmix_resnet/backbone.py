"""ResNet whose every 3×3 convolution is an ACmix layer."""

import re

from mmengine.registry import MODELS
from mmpretrain.models import ResNet
from mmpretrain.models.backbones.resnet import Bottleneck, ResLayer

from acmix import ACmix2d
from acmix.errors import InputError
from acmix.mm.backbone import ACmixBackbone
from acmix.mm.checkpointing import Checkpointed
from acmix.mm.layer_depth import STEM, layer_depth
from acmix_resnet.convert import convert_state_dict


class ACmixBottleneck(Checkpointed, Bottleneck):
    """1×1 → ACmix → 1×1 bottleneck; the stride is inside the ACmix layer.

    Args:
        *args: Arguments of MMPretrain's ``Bottleneck``.
        acmix: Arguments of ``acmix.ACmix2d``.
        **kwargs: Further arguments of ``Bottleneck``.
    """

    def __init__(self, *args, acmix: dict, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.take_with_cp()
        width = self.mid_channels
        self.conv2 = ACmix2d(
            width, width, stride=self.conv2_stride, dilation=self.dilation, **acmix
        )


@MODELS.register_module()
class ACmixResNet(ACmixBackbone, ResNet):
    """MMPretrain's ``ResNet`` with ACmix in place of every 3×3 convolution of a bottleneck.

    Weights of our own, of a run of the released code, and of a plain ResNet (torchvision's names or
    MMPretrain's) load through ``convert_state_dict``; of a plain ResNet all but the 3×3
    convolutions are taken.

    Args:
        depth: 26, 38 or 50.
        num_heads: Attention heads of each ACmix layer.
        kernel_att: Side of the attention window in keys, odd.
        kernel_conv: Side of the convolution that the path stands for, odd.
        mix: How the paths are added, one of ``acmix.MIX_MODES``.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        backend: Backend of the ACmix operators; ``None`` chooses by call.
        zero_init_residual: Whether blocks start as identity; the authors' do not.
        **kwargs: Further arguments of ``ResNet``: ``strides``, ``dilations``, ``out_indices``,
            ``frozen_stages``, ``norm_eval``, ``with_cp``, ``drop_path_rate``, ``init_cfg``, ...

    Shape:
        Input (B, 3, H, W) of any size; stage i gives
        (B, 256 * 2**i, ceil(H / 4 / 2**i), ceil(W / 4 / 2**i)), each division rounded up.

    Raises:
        InputError: The depth is none of the three.
    """

    arch_settings = {
        26: (ACmixBottleneck, (1, 2, 4, 1)),
        38: (ACmixBottleneck, (2, 3, 5, 2)),
        50: (ACmixBottleneck, (3, 4, 6, 3)),
    }
    convert_state_dict = staticmethod(convert_state_dict)

    def __init__(
        self,
        depth: int,
        *,
        num_heads: int = 4,
        kernel_att: int = 7,
        kernel_conv: int = 3,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        backend: str | None = None,
        zero_init_residual: bool = False,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise InputError(
                f"depth={depth}: choose from {', '.join(map(str, self.arch_settings))}"
            )
        # The layers are made in the parent's constructor.
        self.acmix = dict(
            num_heads=num_heads,
            kernel_att=kernel_att,
            kernel_conv=kernel_conv,
            mix=mix,
            shift=shift,
            backend=backend,
        )
        super().__init__(depth, zero_init_residual=zero_init_residual, **kwargs)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Number of the layer of a parameter and of all layers, for layer-wise decay."""
        return layer_depth(param_name, prefix, self.stage_blocks, self._block_of)

    def _block_of(self, name: str) -> tuple[int, int]:
        match = re.match(r"layer(\d+)\.(\d+)\.", name)
        return (int(match[1]) - 1, int(match[2])) if match else STEM

    def make_res_layer(self, **kwargs) -> ResLayer:
        """One stage of ACmix bottlenecks."""
        return super().make_res_layer(acmix=self.acmix, **kwargs)
