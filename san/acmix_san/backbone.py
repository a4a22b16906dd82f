"""Self-attention network whose every self-attention is an ACmix layer."""

import re

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.registry import MODELS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from acmix import VectorACmix
from acmix.checks import check_choice, require
from acmix.mm.backbone import ACmixBackbone
from acmix.mm.layer_depth import STEM, layer_depth
from acmix.modules.neighbourhood import SAN_ATTENTIONS
from acmix_san.convert import convert_state_dict


class SANBlock(nn.Module):
    """Pre-norm block: BN-ReLU-ACmix-BN-ReLU-1×1, added to its input.

    Args:
        channels: Channels of input and output; the ACmix layer has a quarter of them.
        drop_path: Drop path rate.
        with_cp: Whether activations are computed again in the backward pass, to save memory.
        **acmix: Further arguments of ``acmix.VectorACmix``.
    """

    def __init__(self, channels: int, drop_path: float, with_cp: bool, **acmix) -> None:
        super().__init__()
        middle = channels // 4
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = VectorACmix(channels, middle, **acmix)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv = nn.Conv2d(middle, channels, kernel_size=1)
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._residual, x, use_reentrant=False)
        return self._residual(x)

    def _residual(self, x: Tensor) -> Tensor:
        out = self.sam(self.bn1(x).relu_())
        return x + self.drop_path(self.conv(self.bn2(out).relu_()))


@MODELS.register_module()
class ACmixSAN(ACmixBackbone, BaseBackbone):
    """SAN with ACmix in place of every self-attention.

    Weights of the original SAN and of our own load through ``convert_state_dict``; original ones
    give alpha = 1 and beta = 0, so the model starts as that SAN exactly.

    Args:
        depth: 10, 15 or 19.
        attention: SAN's self-attention, ``"patchwise"`` or ``"pairwise"``.
        widths: Channels of the five stages.
        kernels: Side of the neighbourhood in each stage.
        share: Channels that share an attention weight.
        in_channels: Channels of the images.
        stem_channels: Channels of the first convolution.
        drop_path_rate: Drop path rate of the last block; it grows linearly from 0.
        out_indices: Stages whose maps are returned.
        frozen_stages: Stages up to this one, and the stem, are not trained; -1 for none.
        norm_eval: Whether batch statistics stay as they are in training.
        with_cp: Whether activations are computed again in the backward pass, to save memory.
        mix: How the paths are added, one of ``acmix.MIX_MODES``; ``"attention"`` is plain SAN.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        kernel_conv: Side of the convolution that the path stands for, odd.
        backend: Backend of the ACmix operators; ``None`` chooses by call.
        init_cfg: Initialisation; Kaiming's for convolutions if ``None``.

    Shape:
        Input (B, 3, H, W) of any size; stage i gives
        (B, widths[i], ceil(H / 2 / 2**i), ceil(W / 2 / 2**i)), each division rounded up.

    Raises:
        InputError: The depth or the attention is unknown.
    """

    arch_settings = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
    convert_state_dict = staticmethod(convert_state_dict)

    def __init__(
        self,
        depth: int = 10,
        attention: str = "patchwise",
        *,
        widths: tuple[int, ...] = (64, 256, 512, 1024, 2048),
        kernels: tuple[int, ...] = (3, 7, 7, 7, 7),
        share: int = 8,
        in_channels: int = 3,
        stem_channels: int = 64,
        drop_path_rate: float = 0.0,
        out_indices: tuple[int, ...] = (4,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        kernel_conv: int = 3,
        backend: str | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg or _default_init())
        depths = ", ".join(map(str, self.arch_settings))
        require(depth in self.arch_settings, "depth", depth, f"choose from {depths}")
        check_choice("attention", attention, SAN_ATTENTIONS)
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        self.norm_eval = norm_eval
        self.depths = blocks = self.arch_settings[depth]
        rates = torch.linspace(0, drop_path_rate, sum(blocks)).tolist()
        acmix = dict(
            share=share,
            attention=attention,
            mix=mix,
            shift=shift,
            kernel_conv=kernel_conv,
            backend=backend,
        )
        self.conv_in = nn.Conv2d(in_channels, stem_channels, kernel_size=1, bias=False)
        self.bn_in = nn.BatchNorm2d(stem_channels)
        # An odd size is rounded up; at even sizes this is SAN's own pooling.
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        # A norm of a stage follows its blocks, and so no convolution: mmcv's fuse_conv_bn takes the
        # next norm among the children for one that does.
        for stage, width in enumerate(widths):
            setattr(self, f"bn{stage}", nn.BatchNorm2d(width))
        before = stem_channels
        for stage, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            layer = [
                SANBlock(width, rates.pop(0), with_cp, kernel_att=kernel, **acmix)
                for _ in range(blocks[stage])
            ]
            setattr(self, f"conv{stage}", nn.Conv2d(before, width, kernel_size=1, bias=False))
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
            before = width
        self.stages = len(widths)
        self.train()  # frozen before a wrapper for several processes looks

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of ``out_indices``."""
        x = self.bn_in(self.conv_in(x)).relu_()
        maps = []
        for stage in range(self.stages):
            transition, layer, norm = self._stage(stage)
            x = norm(layer(transition(self.pool(x)))).relu_()
            if stage in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> "ACmixSAN":
        """Set the mode; frozen stages stay in evaluation mode without gradients."""
        super().train(mode)
        frozen = [self.conv_in, self.bn_in] if self.frozen_stages >= 0 else []
        for stage in range(self.frozen_stages + 1):
            frozen += self._stage(stage)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Number of the layer of a parameter and of all layers, for layer-wise decay."""
        return layer_depth(param_name, prefix, self.depths, self._block_of)

    def _block_of(self, name: str) -> tuple[int, int]:
        match = re.match(r"(conv|bn|layer)(\d+)\.(?:(\d+)\.)?", name)
        if match is None:
            return STEM
        stage = int(match[2])
        if match[1] == "layer":
            return stage, int(match[3])
        return stage, 0 if match[1] == "conv" else self.depths[stage] - 1

    def _stage(self, stage: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        return tuple(getattr(self, f"{name}{stage}") for name in ("conv", "layer", "bn"))


def _default_init() -> list[dict]:
    return [
        dict(type="Kaiming", layer="Conv2d"),
        dict(type="Constant", val=1, layer="_BatchNorm"),
    ]
