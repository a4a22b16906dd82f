"""ACmix with sliding window attention: the layer that stands where a k×k convolution stood."""

import math
from functools import partial

from torch import Tensor, nn

from acmix.arguments import check_image
from acmix.checks import check_odd, check_positive
from acmix.functional import mixed_paths, sliding_window_attention, sliding_window_paths
from acmix.fx import fx_leaf
from acmix.geometry import output_size
from acmix.modules.baking import joined_projections
from acmix.modules.base import ACmixBase
from acmix.modules.children import encode_position, is_plain, project
from acmix.tracing import unflatten


class ACmix2d(ACmixBase):
    """Drop-in for a k×k convolution with "same" padding on (B, C, H, W) (paper §4, Fig. 2).

    Three 1×1 projections feed sliding window attention and the convolution path; two learned
    scalars add them. Any size of at least 1×1, any stride and dilation, any floating dtype.
    The dilation spaces the keys of the attention; the convolution path, as in the authors' code,
    has none. Parameter names are those of the authors' code.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, C, a multiple of ``num_heads``.
        num_heads: N.
        kernel_att: Side of the attention window in keys, odd.
        kernel_conv: Side of the convolution that the path stands for, odd.
        stride: Stride of the output.
        dilation: Distance of neighbouring keys of the attention, in pixels.
        mix: How the paths are added, one of ``acmix.MIX_MODES``.
        shift: How the shifts are made, one of ``acmix.SHIFT_MODES``.
        backend: Backend of the operators; ``None`` chooses by call.

    Shape:
        Input (B, in_channels, H, W); output (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: An argument, or the shape of the input, is wrong.

    Examples:
        >>> layer = ACmix2d(64, 64, stride=2)
        >>> layer(torch.rand(1, 64, 33, 57)).shape
        torch.Size([1, 64, 17, 29])
    """

    takes_norm = True
    PROJECTIONS = ("conv1", "conv2", "conv3", "conv_p")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int = 4,
        kernel_att: int = 7,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
        *,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            out_channels,
            num_heads,
            kernel_conv=kernel_conv,
            fc_bias=False,
            mix=mix,
            shift=shift,
            backend=backend,
        )
        check_positive("in_channels", in_channels)
        check_odd("kernel_att", kernel_att)
        check_positive("stride", stride)
        check_positive("dilation", dilation)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_att, self.stride, self.dilation = kernel_att, stride, dilation
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        if self.has_attention:
            self.conv_p = nn.Conv2d(2, self.head_dim, kernel_size=1)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """Both paths on one set of projections, mixed."""
        check_image(x, self.in_channels)
        qkv = self.qkv(x) if self.deployed else project(x, self.conv1, self.conv2, self.conv3)
        att: Tensor | None
        conv: Tensor | None
        if self._joint:
            if self._adds_as_defined:
                return self._mix(qkv)
            att, conv = self._both(qkv)
        else:
            att = self._attend(qkv) if self.has_attention else None
            conv = self.convolve(qkv, stride=self.stride) if self.has_convolution else None
        return self.add_paths(att, conv)

    @property
    def _joint(self) -> bool:
        """Whether one operator does both paths."""
        if not (self.has_attention and self.has_convolution and self.dep_conv.learnable):
            return False
        fc = self.fc
        if fc is None:
            return self.dep_conv.inputs == self.maps
        return is_plain(fc, nn.Conv2d) and fc.bias is None

    @property
    def _adds_as_defined(self) -> bool:
        """Whether nobody else sees or changes how the paths are added."""
        # In words that Dynamo follows: it does not know functions of bound methods.
        is_inherited = type(self).add_paths is ACmixBase.add_paths
        return is_inherited and "add_paths" not in self.__dict__

    def _attend(self, qkv: Tensor) -> Tensor:
        """F_att, channel order n * D + d."""
        q, k, v = unflatten(qkv, 1, (3, self.num_heads, self.head_dim)).unbind(1)
        out = sliding_window_attention(q, k, v, self._position(qkv), **self._window())
        return out.flatten(1, 2)

    def _both(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """F_att and beta * F_conv."""
        qkv, fc, _ = self._layer_over_maps(qkv)
        kernels = self.scaled_kernels(fc)
        return sliding_window_paths(qkv, self._position(qkv), fc, kernels, **self._window())

    def _mix(self, qkv: Tensor) -> Tensor:
        """Alpha * F_att + beta * F_conv."""
        qkv, fc, _ = self._layer_over_maps(qkv)
        weights = (self._position(qkv), fc, self.dep_conv(fc.detach()))
        factors = (self.alpha(), self.beta(), self.added())
        return mixed_paths(qkv, *weights, *factors, **self._window())

    def _window(self) -> dict:
        return dict(
            kernel_size=self.kernel_att,
            stride=self.stride,
            dilation=self.dilation,
            backend=self.backend,
        )

    def _position(self, qkv: Tensor) -> Tensor:
        """Position encoding, (D, H, W)."""
        return self._of_position(qkv, partial(encode_position, self.conv_p, like=qkv))

    def _fold(self) -> None:
        self.qkv = joined_projections(self, self.in_channels)
        super()._fold()
        del self.conv1, self.conv2, self.conv3

    def multiply_adds_by_part(self, height: int, width: int) -> dict[str, int]:
        """Multiply-adds for one map of this input size (paper Table 1, and the position term).

        Per window pixel and channel: one for q . k, one for the weighted value, and one for the two
        additions in k_r + position_p - position_r, which Table 1 leaves out.
        """
        pixels = height * width
        out_pixels = math.prod(output_size((height, width), self.stride))
        position = 2 * self.head_dim * pixels
        window = 3 * self.kernel_att**2 * self.dim * out_pixels
        return {
            "projections": 3 * self.in_channels * self.dim * pixels,
            "attention": position + window if self.has_attention else 0,
            "convolution": self.convolution_multiply_adds(pixels, out_pixels),
        }

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Names of all parameters that a layer of any mix can have."""
        projections = (f"{name}.{kind}" for name in cls.PROJECTIONS for kind in ("weight", "bias"))
        return (*cls.RATES, *projections, *cls.CONVOLUTION)

    @staticmethod
    def call_size(x: Tensor) -> tuple[int, int]:
        """Arguments of ``multiply_adds`` for a call."""
        return x.shape[2], x.shape[3]

    def extra_repr(self) -> str:
        """Sizes, for ``print(module)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, "
            f"kernel_att={self.kernel_att}, kernel_conv={self.kernel_conv}, "
            f"stride={self.stride}, dilation={self.dilation}, mix={self.mix!r}"
        )
