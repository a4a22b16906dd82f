"""Swin Transformer whose every attention is an ACmix layer."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmengine.registry import MODELS
from mmpretrain.models import SwinTransformer
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from mmpretrain.models.utils import ShiftWindowMSA
from torch import Tensor, nn

from acmix import WindowACmix
from acmix.geometry import cropped, exceeds, missing, pad_missing
from acmix.mm.backbone import ACmixBackbone
from acmix.mm.checkpointing import Checkpointed
from acmix.tracing import at_least, is_known, is_written_down, unflatten
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
        right, bottom = (missing(size, self.window_size) for size in (width, height))
        x = unflatten(query, 1, (height, width))
        x = pad_missing(x, (0, 0, 0, right, 0, bottom))
        shift = self._shift(hw_shape, x.device)
        if shift is None:
            x = self.w_msa(x)
        else:
            size = x.shape[1:3]
            x = _rolled(x, [-shift, -shift])
            x = self.w_msa(x, _shift_mask(size, self.window_size, shift, x.device))
            x = _rolled(x, [shift, shift])
        return self.drop(cropped(x, height, width).flatten(1, 2))

    def frame_of_call(self, query: Tensor, hw_shape: tuple[int, int]) -> tuple[int, int, int]:
        """Height and width of the map, and the pixels by which the layer sees it shifted."""
        return *hw_shape, int(self._shift(hw_shape, query.device) or 0)

    def _shift(self, hw_shape: tuple[int, int], device: torch.device) -> int | Tensor | None:
        """Pixels that a map of this size is shifted by; (1,) if that is for the graph to say."""
        if self.shift_size == 0 or self.pad_small_map:
            return self.shift_size or None
        if not is_known(*hw_shape):
            return self.shift_size * exceeds(hw_shape, self.window_size, device)
        height, width = hw_shape
        return self.shift_size if min(height, width) > self.window_size else None


def _rolled(x: Tensor, shifts: Sequence[int | Tensor]) -> Tensor:
    """``torch.roll`` of (B, H, W, C) along H and W, by less than their lengths."""
    if not isinstance(shifts[0], Tensor):
        return torch.roll(x, tuple(shifts), dims=(1, 2))
    for dim, shift in enumerate(shifts, start=1):
        length = x.shape[dim]
        index = torch.arange(length, device=x.device) - shift
        index = torch.where(index < 0, index + length, index)
        x = x.index_select(dim, torch.where(index < length, index, index - length))
    return x


def _shift_mask(
    size: tuple[int, int], window: int, shift: int | Tensor, device: torch.device
) -> Tensor:
    """-100 where two pixels of a window were no neighbours before the shift, (nW, L, L).

    Args:
        size: (H, W), multiples of the window.
        window: Side of a window.
        shift: In pixels; where it is 0, all are neighbours.
        device: Where the mask is.
    """
    rows, cols = (_regions(length, window, shift, device) for length in size)
    regions = rows[:, None, :, None] * 3 + cols[None, :, None, :]
    regions = regions.flatten(2, 3).flatten(0, 1)
    return torch.where(regions[:, None, :] != regions[:, :, None], -100.0, 0.0)


def _regions(length: int, window: int, shift: int | Tensor, device: torch.device) -> Tensor:
    """Number of the region that a row of the shifted map is from, (windows, pixels of one)."""
    row = torch.arange(length, device=device)
    # The last window holds rows of the bottom and, behind the seam, of the top.
    behind = (row >= length - shift).to(row.dtype)
    return unflatten((row >= length - window).to(row.dtype) + behind, 0, (-1, window))


class ACmixSwinBlock(Checkpointed, SwinBlock):
    """MMPretrain's block, but for the kind of its checkpoints."""


class AnySizePadding(AdaptivePadding):
    """MMCV's padding, at sizes that an exported program or a trace leaves open too."""

    @classmethod
    def replacing(cls, padding: AdaptivePadding) -> "AnySizePadding":
        """One like ``padding``."""
        return cls(padding.kernel_size, padding.stride, padding.dilation, padding.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), padded so that the kernel covers all of it."""
        height, width = map(
            self._missing, x.shape[2:], self.kernel_size, self.stride, self.dilation
        )
        top, left = (height // 2, width // 2) if self.padding == "same" else (0, 0)
        return pad_missing(x, (left, width - left, top, height - top))

    @staticmethod
    def _missing(size: int, kernel: int, stride: int, dilation: int) -> int:
        """Pixels that one axis lacks."""
        overlap = (kernel - 1) * dilation + 1 - stride
        lacks = missing(size, stride) + overlap
        # No maximum where none is needed: each later size would be made of it.
        return lacks if overlap >= 0 else at_least(lacks, 0)


class Tiles(nn.Unfold):
    """``nn.Unfold`` of patches side by side, each pixel in one of them.

    A rearrangement of the pixels is the same in half of torch's time for it, and in a third with
    the backward pass. A program that is written down keeps what exporters know.
    """

    @classmethod
    def replacing(cls, unfold: nn.Unfold) -> nn.Unfold:
        """One like ``unfold``, or itself where its patches overlap, leave gaps or aren't square."""
        (side, width), stride = unfold.kernel_size, unfold.stride
        plain = unfold.dilation == (1, 1) and unfold.padding == (0, 0)
        tiles = plain and side == width and stride == (side, side)
        if not tiles:
            return unfold
        return cls(unfold.kernel_size, unfold.dilation, unfold.padding, unfold.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), divisible by the side S of a patch, to (B, C * S², patches)."""
        if is_written_down():
            return super().forward(x)
        return F.pixel_unshuffle(x, self.kernel_size[0]).flatten(2)


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
                block.__class__ = ACmixSwinBlock
                block.take_with_cp()
        for module in self.modules():
            if isinstance(getattr(module, "adaptive_padding", None), AdaptivePadding):
                module.adaptive_padding = AnySizePadding.replacing(module.adaptive_padding)
                if isinstance(getattr(module, "sampler", None), nn.Unfold):
                    module.sampler = Tiles.replacing(module.sampler)
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

    Bicubic, as Swin does it.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(entries)
    if old == new:
        return table
    maps = table.T.reshape(1, -1, old, old)
    maps = F.interpolate(maps, size=(new, new), mode="bicubic", align_corners=False)
    return maps.flatten(2)[0].T
