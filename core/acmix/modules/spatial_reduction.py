"""ACmix with global attention over spatially reduced keys and values (PVT)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.backends.derivatives import attention_for
from acmix.checks import check_positive, has_shape, require
from acmix.fx import fx_leaf
from acmix.geometry import pad_missing
from acmix.layout import image_of
from acmix.modules.baking import baked
from acmix.modules.base import ACmixBase
from acmix.tracing import as_number, at_least, is_known


class GlobalACmix(ACmixBase):
    """Attention of every pixel over the whole map, keys and values from a map reduced R times.

    The paper does not say how reduced keys and values reach the convolution path. Our reading: they
    are resized (bilinear) to the resolution of the queries, which costs what the paper's FLOPs have
    room for. Extra tokens in front of the pixels, such as a class token, take part in the attention
    only; the output projection is on the attention path only:
    ``out = alpha * proj(attention) + beta * convolution``. Parameter names are those of PVT v1.

    Args:
        dim: Channels C, a multiple of ``num_heads``.
        num_heads: N.
        sr_ratio: R, by a strided convolution and a LayerNorm; 1 for none.
        qkv_bias: Whether the projections have a bias.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
        kernel_conv: Side of the convolution that the path stands for, odd.
        mix: How the paths are added, one of ``acmix.MIX_MODES``.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        backend: Backend of the convolution path; ``None`` chooses by call. With ``"torch"`` or
            ``"reference"`` the attention has second derivatives too.

    Shape:
        Input and output (B, T + H * W, C) with T extra tokens.

    Raises:
        InputError: An argument, or the shape of the input, is wrong.

    Examples:
        >>> layer = GlobalACmix(64, num_heads=2, sr_ratio=2)
        >>> layer(torch.rand(1, 1 + 14 * 14, 64), (14, 14)).shape  # a class token, then the pixels
        torch.Size([1, 197, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        kernel_conv: int = 3,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            kernel_conv=kernel_conv,
            fc_bias=True,
            mix=mix,
            shift=shift,
            backend=backend,
        )
        check_positive("sr_ratio", sr_ratio)
        self.sr_ratio, self.attn_drop = sr_ratio, attn_drop
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)
        if self.has_attention:
            self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @fx_leaf
    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Both paths on one set of projections, mixed.

        Args:
            x: (B, T + H * W, C).
            hw_shape: (H, W).

        Returns:
            (B, T + H * W, C).
        """
        height, width = hw_shape
        extra = as_number(x.shape[1] - height * width) if x.dim() == 3 else -1
        fits = has_shape(x, None, None, self.dim) and (not is_known(extra) or extra >= 0)
        remedy = "give (B, {} * {}, {})"
        require(fits, "input shape", tuple(x.shape), remedy, height, width, self.dim)
        q = self.q(x)
        source, small = self._reduce(x, extra, hw_shape)
        kv = self.kv(source)
        att = self._attend(q, kv) if self.has_attention else None
        conv = None
        if self.has_convolution:
            conv = self._convolve_tokens(q, kv, extra, hw_shape, small)
        return self.proj_drop(self.add_paths(att, conv))

    def _reduce(
        self, x: Tensor, extra: int, hw_shape: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens that keys and values are made of, and the size of their map."""
        if self.sr_ratio == 1:
            return x, hw_shape
        maps = image_of(x[:, extra:], hw_shape)
        # A map smaller than one reduction is filled up with zeros.
        bottom, right = (at_least(size, self.sr_ratio) - size for size in hw_shape)
        maps = self.sr(pad_missing(maps, (0, right, 0, bottom)))
        tokens = torch.cat([x[:, :extra], maps.flatten(2).transpose(1, 2)], dim=1)
        return self.norm(tokens), maps.shape[2:]

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """proj(F_att), (B, T + H * W, C)."""
        heads = (self.num_heads, self.head_dim)
        query = q.unflatten(2, heads).transpose(1, 2)
        key, value = kv.unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4).unbind()
        dropout = self.attn_drop if self.training else 0.0
        with attention_for(self.backend, query):
            out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _convolve_tokens(
        self,
        q: Tensor,
        kv: Tensor,
        extra: int,
        hw_shape: tuple[int, int],
        small: tuple[int, int],
    ) -> Tensor:
        """F_conv of the pixels times beta, zero for the extra tokens, (B, T + H * W, C)."""
        q_map = image_of(q[:, extra:], hw_shape)
        kv_map = image_of(kv[:, extra:], small)
        if self.sr_ratio > 1:
            kv_map = F.interpolate(kv_map, size=hw_shape, mode="bilinear", align_corners=False)
        out = self.convolve(q_map, kv_map).flatten(2).transpose(1, 2)
        return pad_missing(out, (0, 0, extra, 0))

    def _fold(self) -> None:
        if self.has_attention:
            self.proj = baked(self.proj, "proj", self.dim, nn.Linear)
        super()._fold()
        if self.has_attention:
            self._fold_alpha(self.proj)

    def multiply_adds_by_part(self, height: int, width: int, extra: int = 0) -> dict[str, int]:
        """Multiply-adds for one map of this input size and T extra tokens."""
        tokens = extra + height * width
        pixels = math.prod(self.key_size(height, width))
        keys = extra + pixels
        projections = self.dim**2 * (tokens + 2 * keys)
        if self.sr_ratio > 1:
            projections += self.sr_ratio**2 * self.dim**2 * pixels
        attention = self.dim**2 * tokens + 2 * tokens * keys * self.dim
        return {
            "projections": projections,
            "attention": attention if self.has_attention else 0,
            "convolution": self.convolution_multiply_adds(height * width, height * width),
        }

    def key_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the map of keys and values for a map of queries of this size."""
        return max(height // self.sr_ratio, 1), max(width // self.sr_ratio, 1)

    @staticmethod
    def as_maps(x: Tensor, *size: int) -> Tensor:
        """(B, T + H * W, C) as (B, C, H, W)."""
        height, width, extra = size
        return image_of(x[:, extra:], (height, width))

    @staticmethod
    def call_size(x: Tensor, hw_shape: tuple[int, int]) -> tuple[int, int, int]:
        """Arguments of ``multiply_adds`` for a call."""
        return *hw_shape, x.shape[1] - hw_shape[0] * hw_shape[1]

    def extra_repr(self) -> str:
        """Sizes, for ``print(module)``."""
        return (
            f"{self.dim}, num_heads={self.num_heads}, sr_ratio={self.sr_ratio}, "
            f"kernel_conv={self.kernel_conv}, mix={self.mix!r}"
        )
