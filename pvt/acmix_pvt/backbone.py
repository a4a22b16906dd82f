"""Pyramid Vision Transformer (v1) whose every attention is an ACmix layer."""

import re

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.registry import MODELS
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from acmix import GlobalACmix
from acmix.checks import check_choice, require
from acmix.geometry import missing, pad_missing
from acmix.layout import image_of
from acmix.mm.backbone import ACmixBackbone
from acmix.mm.layer_depth import STEM, layer_depth
from acmix.tracing import as_number, is_known
from acmix_pvt.convert import convert_state_dict


class PatchEmbed(nn.Module):
    """Patches as tokens: a strided convolution and a LayerNorm.

    Args:
        in_channels: Channels of the map.
        dim: Channels of the tokens.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, H * W, dim) of a map, padded to whole patches, and (H, W)."""
        height, width = x.shape[2:]
        right, bottom = (missing(size, self.patch_size) for size in (width, height))
        x = pad_missing(x, (0, right, 0, bottom))
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2:]


class Mlp(nn.Module):
    """Two linear layers with GELU, under PVT's names.

    Args:
        dim: Channels.
        hidden: Channels in between.
        drop: Dropout after each layer.
    """

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class PVTBlock(nn.Module):
    """Pre-norm transformer block.

    Args:
        attn: The ACmix layer.
        mlp_ratio: Hidden channels of the MLP over C.
        drop: Dropout of the MLP.
        drop_path: Drop path rate of both branches.
        with_cp: Whether activations are computed again in the backward pass, to save memory.
    """

    def __init__(
        self, attn: GlobalACmix, mlp_ratio: int, drop: float, drop_path: float, with_cp: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(attn.dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(attn.dim, eps=1e-6)
        self.mlp = Mlp(attn.dim, attn.dim * mlp_ratio, drop)
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, T + H * W, C) to the same."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._branches, x, hw_shape, use_reentrant=False)
        return self._branches(x, hw_shape)

    def _branches(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), hw_shape))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@MODELS.register_module()
class ACmixPVT(ACmixBackbone, BaseBackbone):
    """Pyramid Vision Transformer v1 with ACmix in place of every attention.

    Weights of PVT v1 under its original names, of MMPretrain-style checkpoints and of our own load
    through ``convert_state_dict``; plain ones give alpha = 1 and beta = 0, so the model starts as
    that PVT exactly. Position embeddings of another size are resized, bilinearly.

    Args:
        arch: ``"tiny"``, ``"small"``, ``"medium"``, ``"large"``, or a dict with ``embed_dims``,
            ``depths``, ``num_heads``, ``mlp_ratios`` and ``sr_ratios``, one number a stage.
        img_size: Side of the images that the position embeddings are made for, in pixels.
        in_channels: Channels of the images.
        patch_sizes: Side of the patches of each stage; 4, then 2, if ``None``.
        qkv_bias: Whether the projections have a bias.
        drop_rate: Dropout of embeddings, projections and MLPs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Drop path rate of the last block; it grows linearly from 0.
        with_cls_token: Whether the last stage has a class token.
        out_type: ``"cls_token"``, the class token of the last stage, (B, C), or ``"featmap"``,
            the maps of ``out_indices``.
        out_indices: Stages whose maps are returned with ``"featmap"``.
        frozen_stages: Stages up to this one are not trained; -1 for none.
        norm_eval: For the interface's sake; there are no batch statistics.
        with_cp: Whether activations are computed again in the backward pass, to save memory.
        mix: How the paths are added, one of ``acmix.MIX_MODES``; ``"attention"`` is plain PVT.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        kernel_conv: Side of the convolution that the path stands for, odd.
        backend: Backend of the ACmix operators; ``None`` chooses by call.
        init_cfg: Initialisation; PVT's if ``None``.

    Shape:
        Input (B, 3, H, W) of any size; stage i gives
        (B, embed_dims[i], ceil(H / 4 / 2**i), ceil(W / 4 / 2**i)), each division rounded up.

    Raises:
        InputError: The architecture or the output type is unknown.
    """

    arch_zoo = {
        "tiny": dict(depths=[2, 2, 2, 2]),
        "small": dict(depths=[3, 4, 6, 3]),
        "medium": dict(depths=[3, 4, 18, 3]),
        "large": dict(depths=[3, 8, 27, 3]),
    }
    arch_defaults = dict(
        embed_dims=[64, 128, 320, 512],
        num_heads=[1, 2, 5, 8],
        mlp_ratios=[8, 8, 4, 4],
        sr_ratios=[8, 4, 2, 1],
    )
    convert_state_dict = staticmethod(convert_state_dict)

    def __init__(
        self,
        arch: str | dict = "tiny",
        *,
        img_size: int = 224,
        in_channels: int = 3,
        patch_sizes: tuple[int, ...] | None = None,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        with_cls_token: bool = True,
        out_type: str = "cls_token",
        out_indices: tuple[int, ...] = (3,),
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
        self.arch = arch = self._read_arch(arch)
        check_choice("out_type", out_type, ("cls_token", "featmap"))
        needs_token = out_type == "cls_token" and not with_cls_token
        require(not needs_token, "with_cls_token", False, "out_type='cls_token' needs it")
        self.stages = len(arch["depths"])
        self.out_type, self.out_indices = out_type, tuple(out_indices)
        self.frozen_stages, self.with_cls_token = frozen_stages, with_cls_token
        self.pos_drop = nn.Dropout(drop_rate)
        layer = dict(
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            proj_drop=drop_rate,
            mix=mix,
            shift=shift,
            kernel_conv=kernel_conv,
            backend=backend,
        )
        patch_sizes = patch_sizes or (4, *[2] * (self.stages - 1))
        rates = torch.linspace(0, drop_path_rate, sum(arch["depths"])).tolist()
        side = img_size
        for stage in range(self.stages):
            dim = arch["embed_dims"][stage]
            before = arch["embed_dims"][stage - 1] if stage else in_channels
            side = -(-side // patch_sizes[stage])
            tokens = side**2 + self._extra_tokens(stage)
            blocks = [
                PVTBlock(
                    GlobalACmix(dim, arch["num_heads"][stage], arch["sr_ratios"][stage], **layer),
                    arch["mlp_ratios"][stage],
                    drop_rate,
                    rates.pop(0),
                    with_cp,
                )
                for _ in range(arch["depths"][stage])
            ]
            number = stage + 1
            setattr(self, f"patch_embed{number}", PatchEmbed(before, dim, patch_sizes[stage]))
            setattr(self, f"pos_embed{number}", nn.Parameter(torch.zeros(1, tokens, dim)))
            setattr(self, f"block{number}", nn.ModuleList(blocks))
        if with_cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if out_type == "cls_token":
            self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._register_load_state_dict_pre_hook(self._fit_position_embeddings)
        self.train()  # frozen before a wrapper for several processes looks

    def init_weights(self) -> None:
        """Initialise, position embeddings and class token too."""
        for stage in range(self.stages):
            nn.init.trunc_normal_(self._position(stage), std=0.02)
        if self.with_cls_token:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The class token (B, C), or the maps of ``out_indices``."""
        maps = []
        for stage in range(self.stages):
            tokens, hw_shape = self._embed(x, stage)
            for block in getattr(self, f"block{stage + 1}"):
                tokens = block(tokens, hw_shape)
            pixels = tokens[:, self._extra_tokens(stage) :]
            x = image_of(pixels, hw_shape)
            if stage in self.out_indices:
                maps.append(x)
        if self.out_type == "cls_token":
            return (self.norm(tokens[:, 0]),)
        return tuple(m.contiguous() for m in maps)

    def train(self, mode: bool = True) -> "ACmixPVT":
        """Set the mode; frozen stages stay in evaluation mode without gradients."""
        super().train(mode)
        for stage in range(self.frozen_stages + 1):
            for name in ("patch_embed", "block"):
                module = getattr(self, f"{name}{stage + 1}")
                module.eval()
                module.requires_grad_(False)
            self._position(stage).requires_grad_(False)
        if self.frozen_stages == self.stages - 1:
            for name, parameter in self.named_parameters():
                if name.startswith(("cls_token", "norm.")):
                    parameter.requires_grad_(False)
        return self

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Number of the layer of a parameter and of all layers, for layer-wise decay."""
        return layer_depth(param_name, prefix, self.arch["depths"], self._block_of)

    @property
    def num_extra_tokens(self) -> int:
        """Tokens of the last stage that are no pixels, as MMPretrain's tools ask for them."""
        return int(self.with_cls_token)

    def _block_of(self, name: str) -> tuple[int, int] | None:
        match = re.match(r"(block|patch_embed|pos_embed)(\d+)(?:\.(\d+)\.)?", name)
        if match is None:
            return (self.stages - 1, 0) if name == "cls_token" else None
        stage = int(match[2]) - 1
        if match[1] == "block":
            return stage, int(match[3])
        return (stage, 0) if stage else STEM

    def _read_arch(self, arch: str | dict) -> dict:
        if isinstance(arch, str):
            check_choice("arch", arch, self.arch_zoo)
            return {**self.arch_defaults, **self.arch_zoo[arch]}
        keys = {"depths", *self.arch_defaults}
        require(set(arch) == keys, "arch", sorted(arch), f"give a dict of {sorted(keys)}")
        return arch

    def _extra_tokens(self, stage: int) -> int:
        return int(self.with_cls_token and stage == self.stages - 1)

    def _position(self, stage: int) -> nn.Parameter:
        return getattr(self, f"pos_embed{stage + 1}")

    def _embed(self, x: Tensor, stage: int) -> tuple[Tensor, tuple[int, int]]:
        tokens, hw_shape = getattr(self, f"patch_embed{stage + 1}")(x)
        extra = self._extra_tokens(stage)
        if extra:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        position = resize_position(self._position(stage), hw_shape, extra)
        return self.pos_drop(tokens + position), hw_shape

    def _fit_position_embeddings(
        self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs
    ) -> None:
        """On loading, resize embeddings made for other images, and drop an unused class token's."""
        for stage in range(self.stages):
            name = f"{prefix}pos_embed{stage + 1}"
            own, given = self._position(stage), state_dict.get(name)
            if given is None or given.shape == own.shape:
                continue
            extra = self._extra_tokens(stage)
            theirs = int(round((given.shape[1] - 1) ** 0.5) ** 2 + 1 == given.shape[1])
            if theirs and not extra:
                given = given[:, 1:]
            side = round((own.shape[1] - extra) ** 0.5)
            state_dict[name] = resize_position(given, (side, side), extra)


def resize_position(position: Tensor, hw_shape: tuple[int, int], extra: int) -> Tensor:
    """Position embedding of a square map, (1, T + S², C), for a map of another size, bilinearly."""
    tokens, pixels = position[:, :extra], position[:, extra:]
    side = round(as_number(pixels.shape[1]) ** 0.5)
    if is_known(*hw_shape) and tuple(hw_shape) == (side, side):
        return position
    maps = image_of(pixels, (side, side))
    maps = F.interpolate(maps, size=tuple(hw_shape), mode="bilinear", align_corners=False)
    return torch.cat([tokens, maps.flatten(2).transpose(1, 2)], dim=1)


def _default_init() -> list[dict]:
    return [
        dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
        dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
    ]
