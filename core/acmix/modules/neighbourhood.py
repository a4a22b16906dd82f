"""ACmix with the self-attention of SAN: patchwise or pairwise weights of a neighbourhood."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from acmix.arguments import check_image
from acmix.checks import check_choice, check_odd, check_positive, require
from acmix.functional import neighbourhood_aggregation, neighbourhood_difference
from acmix.fx import fx_leaf
from acmix.geometry import can_reflect, neighbour_rows
from acmix.modules.baking import joined_projections
from acmix.modules.base import ACmixBase
from acmix.modules.children import (
    affine_of,
    encode_position,
    has_statistics,
    is_plain,
    project,
)
from acmix.tracing import addcmul, is_known, is_written_down

SAN_ATTENTIONS = ("patchwise", "pairwise")

# Maps of the convolution path: q and k are one map each, v is four.
_GROUPS = 4


class VectorACmix(ACmixBase):
    """SAN's self-attention, mixed with a convolution of the same projections (paper App. C).

    Both kinds are vector attention: a weight for each of C / share channels, not one a head.

    q and k have C / 4 channels and v has C, so there are six maps of width C / 4: one of q, one of
    k, four of v. A small network φ (BN-ReLU-1×1-BN-ReLU-1×1) gives the attention weights of a k×k
    neighbourhood, shared by the channels c with the same c mod (C / share):

    * patchwise: φ of q_p and all k_r of the neighbourhood at once gives all weights at once;
    * pairwise: φ of q_p - k_r and of the difference of their positions gives the weight of r, with
      a softmax over the neighbourhood.

    Parameter names are those of SAN's ``sam``. The layer over the six maps has no bias, as in the
    authors' convolutional form: a BatchNorm follows.

    Args:
        in_channels: Channels of the input.
        dim: Channels C of the output, a multiple of 4 and of ``share``.
        kernel_att: Side of the neighbourhood, odd.
        share: Channels that share a weight: C / share weights a position.
        attention: ``"patchwise"`` or ``"pairwise"``.
        kernel_conv: Side of the convolution that the path stands for, odd.
        mix: How the paths are added, one of ``acmix.MIX_MODES``.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        norm_layer: Makes a norm of φ from its number of channels.
        backend: Backend of the operators; ``None`` chooses by call.

    Shape:
        Input (B, in_channels, H, W); output (B, C, H, W). Borders are reflected; on a map too small
        for that, positions outside count as zero.

    Raises:
        InputError: An argument, or the shape of the input, is wrong.

    Examples:
        >>> layer = VectorACmix(64, 64, attention="pairwise")
        >>> layer(torch.rand(1, 64, 9, 14)).shape
        torch.Size([1, 64, 9, 14])
    """

    takes_norm = True

    def __init__(
        self,
        in_channels: int,
        dim: int,
        kernel_att: int = 7,
        share: int = 8,
        attention: str = "patchwise",
        *,
        kernel_conv: int = 3,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            dim,
            _GROUPS,
            maps=2 + _GROUPS,
            kernel_conv=kernel_conv,
            fc_bias=False,
            mix=mix,
            shift=shift,
            backend=backend,
        )
        check_positive("in_channels", in_channels)
        check_odd("kernel_att", kernel_att)
        check_positive("share", share)
        require(dim % share == 0, "dim", dim, f"must be a multiple of share={share}")
        check_choice("attention", attention, SAN_ATTENTIONS)
        self.in_channels, self.kernel_att, self.attention = in_channels, kernel_att, attention
        self.shared = dim // share
        relation = self.head_dim
        self.conv1 = nn.Conv2d(in_channels, relation, kernel_size=1)
        self.conv2 = nn.Conv2d(in_channels, relation, kernel_size=1)
        self.conv3 = nn.Conv2d(in_channels, dim, kernel_size=1)
        if self.has_attention and attention == "patchwise":
            window = kernel_att**2
            sizes = relation * (window + 1), self.shared, window * self.shared
            self.conv_w = _phi(*sizes, norm_layer)
        elif self.has_attention:
            self.conv_w = _phi(relation + 2, relation, self.shared, norm_layer)
            self.conv_p = nn.Conv2d(2, 2, kernel_size=1)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """Both paths on one set of projections, mixed."""
        check_image(x, self.in_channels)
        qkv = self.qkv(x) if self.deployed else project(x, self.conv1, self.conv2, self.conv3)
        att = self._attend(qkv) if self.has_attention else None
        conv = self.convolve(qkv) if self.has_convolution else None
        return self.add_paths(att, conv)

    def _attend(self, qkv: Tensor) -> Tensor:
        """F_att, (B, C, H, W)."""
        q, k, v = qkv.split((self.head_dim, self.head_dim, self.dim), dim=1)
        weigh = self._patchwise if self.attention == "patchwise" else self._pairwise
        # Under autocast the softmax gives float32.
        weights = weigh(q, k).to(v.dtype)
        return neighbourhood_aggregation(
            v, weights, kernel_size=self.kernel_att, backend=self.backend
        )

    def _pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights (B, C / share, k², H, W), a softmax over the neighbourhood."""
        relation = neighbourhood_difference(q, k, kernel_size=self.kernel_att, backend=self.backend)
        distance = self._of_position(q, partial(self._distances, q))
        pairs = torch.cat([relation, distance.expand(q.shape[0], -1, -1, -1, -1)], dim=1)
        return self.conv_w(pairs.flatten(3)).unflatten(3, q.shape[-2:]).softmax(dim=2)

    def _distances(self, q: Tensor) -> Tensor:
        """Differences of the positions of a neighbourhood, (1, 2, k², H, W)."""
        position = encode_position(self.conv_p, like=q)[None]
        return neighbourhood_difference(position, kernel_size=self.kernel_att, backend=self.backend)

    def _patchwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights (B, C / share, k², H, W)."""
        norm, _, conv = self.conv_w[:3]
        if (
            is_plain(norm, nn.BatchNorm2d)
            and is_plain(conv, nn.Conv2d)
            and has_statistics(norm)
            and not is_written_down()
        ):
            hidden = self._patchwise_hidden(q, k, norm, conv)
        else:
            # Batch statistics of every neighbour need them all at once; a graph has fewer nodes so.
            hidden = conv(norm(self._patches(q, k)).relu_())
        return self.conv_w[3:](hidden).unflatten(1, (self.shared, self.kernel_att**2))

    def _rows(self, k: Tensor) -> list[Tensor]:
        """K at every offset of the neighbourhood, (B, C / 4, k, H, W) for each row of offsets."""
        size = k.shape[-2:]
        reflect = not is_known(*size) or can_reflect(size, self.kernel_att // 2)
        return neighbour_rows(k, self.kernel_att, reflect=reflect)

    def _patches(self, q: Tensor, k: Tensor) -> Tensor:
        """Q channels, then k unfolded channel by channel, (B, (1 + k²) * C / 4, H, W)."""
        return torch.cat([q, torch.cat(self._rows(k), dim=2).flatten(1, 2)], dim=1)

    def _patchwise_hidden(
        self, q: Tensor, k: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d
    ) -> Tensor:
        """First half of φ, one row of neighbours at a time: no k²-fold copy of k."""
        scale, bias = affine_of(norm)
        # Channels of φ: those of q, then those of k with its neighbours as the inner index.
        sizes = (self.head_dim, self.kernel_att, self.kernel_att)
        of_q, of_k = slice(None, sizes[0]), slice(sizes[0], None)
        scales, biases = (t[of_k].view(*sizes, 1, 1) for t in (scale, bias))
        weights = conv.weight[:, of_k].unflatten(1, sizes)

        centre = addcmul(bias[of_q, None, None], q, scale[of_q, None, None])
        # A bias where the norm behind the convolution has been folded into it.
        hidden = F.conv2d(centre.relu_(), conv.weight[:, of_q], conv.bias)
        for y, row in enumerate(self._rows(k)):
            normed = [
                addcmul(biases[:, y, x], row[:, :, x], scales[:, y, x])
                for x in range(self.kernel_att)
            ]
            # Neighbours as the outer index here: channels last stays so.
            weight = weights[:, :, y].transpose(1, 2).flatten(1, 2)
            hidden = hidden + F.conv2d(torch.cat(normed, dim=1).relu_(), weight)
        return hidden

    def _fold(self) -> None:
        self.qkv = joined_projections(self, self.in_channels)
        super()._fold()
        del self.conv1, self.conv2, self.conv3
        if self.has_attention:
            self._fold_second_norm()

    def _fold_second_norm(self) -> None:
        """Fold the second norm of φ into the convolution before it; a ReLU follows the first."""
        conv, norm = self.conv_w[2:4]
        if is_plain(conv, nn.Conv2d) and is_plain(norm, nn.BatchNorm2d) and has_statistics(norm):
            self.conv_w[2], self.conv_w[3] = fuse_conv_bn_eval(conv, norm), nn.Identity()

    def multiply_adds_by_part(self, height: int, width: int) -> dict[str, int]:
        """Multiply-adds for one map of this input size."""
        pixels, window, attention = height * width, self.kernel_att**2, 0
        if self.has_attention:
            products = sum(m.weight.numel() for m in self.conv_w if isinstance(m, nn.Conv2d))
            evaluations = 1 if self.attention == "patchwise" else window
            position = self.conv_p.weight.numel() if self.attention == "pairwise" else 0
            attention = position + evaluations * products + window * self.dim
        return {
            "projections": self.in_channels * (2 * self.head_dim + self.dim) * pixels,
            "attention": attention * pixels,
            "convolution": self.convolution_multiply_adds(pixels, pixels),
        }

    @staticmethod
    def call_size(x: Tensor) -> tuple[int, int]:
        """Arguments of ``multiply_adds`` for a call."""
        return x.shape[2], x.shape[3]

    def extra_repr(self) -> str:
        """Sizes, for ``print(module)``."""
        return (
            f"{self.in_channels}, {self.dim}, kernel_att={self.kernel_att}, "
            f"attention={self.attention!r}, kernel_conv={self.kernel_conv}, mix={self.mix!r}"
        )


def _phi(
    channels: int, hidden: int, out: int, norm_layer: Callable[[int], nn.Module]
) -> nn.Sequential:
    return nn.Sequential(
        norm_layer(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, hidden, kernel_size=1, bias=False),
        norm_layer(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, kernel_size=1),
    )


def renamed(name: str, module: str) -> type[VectorACmix]:
    """The layer by its former name, with a warning; for ``__getattr__`` of a module that had it.

    Raises:
        AttributeError: The name is another.
    """
    if name != "PatchwiseACmix":
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        "PatchwiseACmix is called VectorACmix now, as it is pairwise too; the former name goes "
        "with the next version",
        DeprecationWarning,
        stacklevel=3,
    )
    return VectorACmix


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> type[VectorACmix]:
        return renamed(name, __name__)
