"""ACmix with attention inside windows (Swin)."""

from typing import Any

import torch
from torch import Tensor, nn

from acmix.checks import check_positive, has_shape, not_empty, require
from acmix.functional import map_window_attention
from acmix.fx import fx_leaf
from acmix.geometry import cropped, missing, pad_missing
from acmix.modules.baking import baked
from acmix.modules.base import ACmixBase


class WindowACmix(ACmixBase):
    """Window attention with relative position bias, mixed with a convolution of the whole map.

    The output projection belongs to the attention path alone:
    ``out = alpha * proj(attention) + beta * convolution``, then dropout. The convolution path sees
    the map as given, so in a shifted block it wraps over the seam of the cyclic shift. Parameter
    names are those of the authors' Swin.

    Args:
        dim: Channels C, a multiple of ``num_heads``.
        window_size: Side of a window in pixels, or (height, width).
        num_heads: N.
        qkv_bias: Whether the projections have a bias.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
        kernel_conv: Side of the convolution that the path stands for, odd.
        mix: How the paths are added, one of ``acmix.MIX_MODES``.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        backend: Backend of the operators; ``None`` chooses by call.

    Shape:
        Input and output (B, H, W, C). A size that windows do not divide is padded with zeros at
        the bottom and the right, and cropped again.

    Raises:
        InputError: An argument, or the shape of the input or the mask, is wrong.

    Examples:
        >>> layer = WindowACmix(96, window_size=7, num_heads=3)
        >>> layer(torch.rand(2, 30, 41, 96)).shape
        torch.Size([2, 30, 41, 96])
    """

    def __init__(
        self,
        dim: int,
        window_size: int | tuple[int, int],
        num_heads: int,
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
        height, width = (window_size,) * 2 if isinstance(window_size, int) else window_size
        check_positive("window_size", height)
        check_positive("window_size", width)
        self.window_size = (height, width)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if self.has_attention:
            entries = (2 * height - 1) * (2 * width - 1)
            self.relative_position_bias_table = nn.Parameter(torch.empty(entries, num_heads))
            self.relative_position_index: Tensor
            self.register_buffer("relative_position_index", relative_position_index(height, width))
            self.attn_drop = attn_drop
            self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Set the scalars of the mix, the position bias (normal, std 0.02) and its index."""
        super().reset_own_parameters()
        if hasattr(self, "relative_position_bias_table"):
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
            self.relative_position_index.copy_(relative_position_index(*self.window_size))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load; the index of the position bias follows from the window, whatever the file says."""
        name = f"{prefix}relative_position_index"
        if name in state_dict and self.has_attention:
            state_dict[name] = relative_position_index(*self.window_size)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @fx_leaf
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Both paths on one set of projections, mixed.

        Args:
            x: (B, H, W, C).
            mask: Added to the attention logits of window w of every image, (nW, L, L) with
                L = window height × width; windows row by row of the padded map.

        Returns:
            (B, H, W, C).
        """
        fits = has_shape(x, None, None, None, self.dim) and not_empty(*x.shape[1:3])
        require(fits, "input shape", tuple(x.shape), f"give (B, H, W, {self.dim})")
        height, width = x.shape[1:3]
        win_h, win_w = self.window_size
        x = pad_missing(x, (0, 0, 0, missing(width, win_w), 0, missing(height, win_h)))
        qkv = self.qkv(x)
        att = self._attend(qkv, mask) if self.has_attention else None
        conv = self._convolve_pixels(qkv) if self.has_convolution else None
        return cropped(self.proj_drop(self.add_paths(att, conv)), height, width)

    def _attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """proj(F_att), (B, H, W, C)."""
        out = map_window_attention(
            qkv,
            self._position_bias(),
            mask,
            window_size=self.window_size,
            dropout=self.attn_drop if self.training else 0.0,
            backend=self.backend,
        )
        return self.proj(out)

    def _convolve_pixels(self, qkv: Tensor) -> Tensor:
        """F_conv times beta, (B, H, W, C)."""
        return self.convolve(qkv.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _position_bias(self) -> Tensor:
        """Relative position bias, (N, L, L)."""
        if self.deployed:
            return self.position_bias
        length = self.relative_position_index.shape[0]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.view(length, length, self.num_heads).permute(2, 0, 1)

    def _fold(self) -> None:
        if self.has_attention:
            self.proj = baked(self.proj, "proj", self.dim, nn.Linear)
            self.position_bias = nn.Parameter(self._position_bias().contiguous())
            del self.relative_position_bias_table, self.relative_position_index
        super()._fold()
        if self.has_attention:
            self._fold_alpha(self.proj)

    def multiply_adds_by_part(self, height: int, width: int) -> dict[str, int]:
        """Multiply-adds for one map of this input size, padded to windows (paper Table 1)."""
        win_h, win_w = self.window_size
        pixels = (height + -height % win_h) * (width + -width % win_w)
        attention = (self.dim**2 + 2 * win_h * win_w * self.dim) * pixels
        return {
            "projections": 3 * self.dim**2 * pixels,
            "attention": attention if self.has_attention else 0,
            "convolution": self.convolution_multiply_adds(pixels, pixels),
        }

    @staticmethod
    def call_size(x: Tensor, mask: Tensor | None = None) -> tuple[int, int]:
        """Arguments of ``multiply_adds`` for a call."""
        return x.shape[1], x.shape[2]

    @staticmethod
    def as_maps(x: Tensor, *size: int) -> Tensor:
        """(B, H, W, C) as (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Sizes, for ``print(module)``."""
        return (
            f"{self.dim}, window_size={self.window_size}, num_heads={self.num_heads}, "
            f"kernel_conv={self.kernel_conv}, mix={self.mix!r}"
        )


def relative_position_index(height: int, width: int) -> Tensor:
    """Row of the bias table for every pair (query, key) of a window, (L, L).

    Row (dy + height - 1) * (2 * width - 1) + (dx + width - 1) for query minus key = (dy, dx).
    """
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dy = ys.flatten()[:, None] - ys.flatten()[None, :] + height - 1
    dx = xs.flatten()[:, None] - xs.flatten()[None, :] + width - 1
    return dy * (2 * width - 1) + dx
