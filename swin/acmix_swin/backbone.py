"""Swin Transformer whose every attention is an ACmix layer."""

import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmpretrain.models import SwinTransformer
from mmpretrain.models.utils import ShiftWindowMSA
from torch import Tensor

from acmix import WindowACmix
from acmix.geometry import pad_missing
from acmix.mm.backbone import ACmixBackbone
from acmix_swin.convert import convert_state_dict


class ShiftWindowACmix(ShiftWindowMSA):
    """Cyclic shift around a ``WindowACmix``, which sees the whole shifted map.

    Maps that windows don't divide are padded at the bottom and the right. A map no larger than a
    window is not shifted, unless ``pad_small_map`` is set; where MMPretrain refuses a smaller one,
    it is padded to a window.
    """

    @classmethod
    def replacing(cls, attention: ShiftWindowMSA, **acmix) -> "ShiftWindowACmix":
        """An ACmix layer with the sizes of a plain one; ``acmix`` goes to ``WindowACmix``."""
        plain = attention.w_msa
        layer = cls(
            embed_dims=plain.embed_dims,
            num_heads=plain.num_heads,
            window_size=attention.window_size,
            shift_size=attention.shift_size,
            pad_small_map=attention.pad_small_map,
            window_msa=_build_window_acmix,
            qkv_bias=plain.qkv.bias is not None,
            attn_drop=plain.attn_drop.p,
            proj_drop=plain.proj_drop.p,
            **acmix,
        )
        layer.drop = attention.drop
        return layer

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Shift, mix and shift back.

        Args:
            query: (B, H * W, C).
            hw_shape: (H, W).

        Returns:
            (B, H * W, C).
        """
        height, width = hw_shape
        window = self.window_size
        shift = self.shift_size if min(hw_shape) > window or self.pad_small_map else 0
        x = query.view(-1, height, width, query.shape[-1])
        x = pad_missing(x, (0, 0, 0, -width % window, 0, -height % window))
        mask = self.get_attn_mask(x.shape[1:3], window, shift, x.device)
        if shift:
            x = torch.roll(x, (-shift, -shift), dims=(1, 2))
        x = self.w_msa(x, mask)
        if shift:
            x = torch.roll(x, (shift, shift), dims=(1, 2))
        return self.drop(x[:, :height, :width].reshape(query.shape))


def _build_window_acmix(embed_dims: int, window_size: tuple[int, int], **kwargs) -> WindowACmix:
    return WindowACmix(embed_dims, window_size, **kwargs)


@MODELS.register_module()
class ACmixSwinTransformer(ACmixBackbone, SwinTransformer):
    """MMPretrain's ``SwinTransformer`` with ACmix in place of every window attention.

    Weights of the authors' release, of our own, and of a plain Swin (Microsoft's names,
    torchvision's or MMPretrain's) load through ``convert_state_dict``; a plain Swin gives alpha = 1
    and beta = 0, so the model starts as that Swin exactly.

    Args:
        arch: ``"tiny"``, ``"small"``, ``"base"``, ``"large"``, or a dict with ``embed_dims``,
            ``depths`` and ``num_heads``.
        mix: How the paths are added, one of ``acmix.MIX_MODES``; ``"attention"`` is plain Swin.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        kernel_conv: Side of the convolution that the path stands for, odd.
        backend: Backend of the ACmix operators; ``None`` chooses by call.
        **kwargs: Further arguments of ``SwinTransformer``: ``window_size``, ``drop_path_rate``,
            ``out_indices``, ``frozen_stages``, ``with_cp``, ``pad_small_map``, ``init_cfg``, ...

    Shape:
        Input (B, 3, H, W) of any size; stage i gives
        (B, embed_dims * 2**i, ceil(H / 4 / 2**i), ceil(W / 4 / 2**i)), each division rounded up.
    """

    convert_state_dict = staticmethod(convert_state_dict)

    def __init__(
        self,
        arch: str | dict = "tiny",
        *,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        kernel_conv: int = 3,
        backend: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        acmix = dict(mix=mix, shift=shift, kernel_conv=kernel_conv, backend=backend)
        for stage in self.stages:
            for block in stage.blocks:
                block.attn = ShiftWindowACmix.replacing(block.attn, **acmix)
        self.train()  # frozen before a wrapper for several processes looks

    def _prepare_relative_position_bias_table(
        self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs
    ) -> None:
        """Resize bias tables of another window size on loading; the index is ours."""
        for name, own in self.state_dict().items():
            if prefix + name not in state_dict:
                continue
            if name.endswith("relative_position_index"):
                state_dict[prefix + name] = own
            elif name.endswith("relative_position_bias_table"):
                state_dict[prefix + name] = _resize_table(state_dict[prefix + name], own.shape[0])


def _resize_table(table: Tensor, entries: int) -> Tensor:
    """Bias of every offset of a square window, (entries, N), for a window of another size.

    Bicubic, as MMPretrain's helper was; that one needs a function that scipy has dropped.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(entries)
    if old == new:
        return table
    maps = table.T.reshape(1, -1, old, old)
    maps = F.interpolate(maps, size=(new, new), mode="bicubic", align_corners=True)
    return maps.flatten(2)[0].T
