"""What every ACmix layer shares: the convolution path and the mix of the two paths."""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from acmix.checks import check_choice, check_odd, check_positive, require
from acmix.errors import InputError
from acmix.functional import convolution_path
from acmix.modules.children import is_plain, reset_children
from acmix.modules.shift import ShiftKernels

# How alpha and beta are made, one row each in the paper's Table 6.
MIX_MODES = (
    "alpha_beta",  # alpha, beta both learned
    "alpha_complement",  # alpha learned, beta = 1 - alpha
    "alpha_one",  # alpha learned, beta = 1
    "one_one",  # neither learned
    "attention",  # attention path only
    "convolution",  # convolution path only
)


class ACmixBase(nn.Module):
    """Parameters and steps shared by the attention forms; subclasses add projections and attention.

    out = alpha * F_att + beta * F_conv, with alpha = ``rate1`` and beta = ``rate2``, both 0.5 at
    the start (paper Eq. 10). A path that the mix leaves out has no parameters.

    Args:
        dim: Output channels C, a multiple of ``num_heads``.
        num_heads: N, the output channels of each of the D = C / N groups of the convolution path.
        maps: Maps of width D that the convolution path reads; 3N if ``None``.
        kernel_conv: Side k_c of the convolution that the path stands for, odd.
        fc_bias: Whether the layer over the maps has a bias.
        mix: One of ``MIX_MODES``.
        shift: One of ``SHIFT_MODES``.
        backend: Backend of all operators of this layer; ``None`` chooses by call.

    Raises:
        InputError: A size, mode or number of heads is wrong.
    """

    # Names in a state dict: alpha and beta, and what else only the convolution path has. A layer of
    # attention alone has none of them.
    RATES = ("rate1", "rate2")
    CONVOLUTION = ("fc.weight", "fc.bias", "dep_conv.weight")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        maps: int | None = None,
        kernel_conv: int = 3,
        fc_bias: bool,
        mix: str = "alpha_beta",
        shift: str = "learnable",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_positive("num_heads", num_heads)
        check_positive("dim", dim)
        require(dim % num_heads == 0, "dim", dim, f"must be a multiple of num_heads={num_heads}")
        check_odd("kernel_conv", kernel_conv)
        check_choice("mix", mix, MIX_MODES)
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.maps = maps or 3 * num_heads
        self.kernel_conv, self.mix, self.backend = kernel_conv, mix, backend
        self.has_attention = mix != "convolution"
        self.has_convolution = mix != "attention"
        if mix.startswith("alpha"):
            self.rate1 = nn.Parameter(torch.empty(1))
        if mix == "alpha_beta":
            self.rate2 = nn.Parameter(torch.empty(1))
        if self.has_convolution:
            self.fc = nn.Conv2d(self.maps, kernel_conv**2, kernel_size=1, bias=fc_bias)
            self.dep_conv = ShiftKernels(self.head_dim, num_heads, kernel_conv, shift)
        self.reset_own_parameters()

    @classmethod
    def attention_alone(cls) -> dict[str, Tensor]:
        """Alpha = 1 and beta = 0 under their names: the layer computes its attention."""
        return dict(zip(cls.RATES, (torch.ones(1), torch.zeros(1)), strict=True))

    def reset_parameters(self) -> None:
        """Start anew: this layer's own parameters and buffers, and those of all its children."""
        reset_children(self)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Set the learned scalars of the mix to 0.5; subclasses add what else is their own."""
        for name in self.RATES:
            if hasattr(self, name):
                nn.init.constant_(getattr(self, name), 0.5)

    def convolve(self, *projections: Tensor, stride: int = 1) -> Tensor:
        """F_conv of the projections times beta, for a mix with a convolution path.

        Args:
            *projections: The maps in the order q, k, v, (B, ..., H, W), in one tensor or several.
            stride: Stride of the output.

        Returns:
            (B, C, ceil(H / stride), ceil(W / stride)).
        """
        qkv = projections[0] if len(projections) == 1 else torch.cat(projections, dim=1)
        by_tensors = self.dep_conv.mode == "tensor"
        qkv, fc_weight, fc_bias = self._layer_over_maps(qkv)
        out = convolution_path(
            qkv,
            fc_weight,
            None if by_tensors else self.scaled_kernels(fc_weight),
            fc_bias,
            stride=stride,
            backend=self.backend,
        )
        if by_tensors:
            beta = self.beta()
            out = out if beta is None else out * beta
        # Channel d * N + n: one kernel a group serves all N channels of the group.
        return out if self.dep_conv.learnable else out.repeat_interleave(self.num_heads, dim=1)

    def _layer_over_maps(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Maps, weight and bias of the layer over the maps, as ``convolution_path`` takes them."""
        if is_plain(self.fc, nn.Conv2d):
            return qkv, self.fc.weight.flatten(1), self.fc.bias
        maps = qkv.unflatten(1, (-1, self.head_dim))
        taps = self.fc(maps.flatten(2, 3)).unflatten(2, maps.shape[2:4])
        return taps.flatten(1, 2), torch.eye(taps.shape[1]).to(taps), None

    def scaled_kernels(self, like: Tensor) -> Tensor:
        """The shift kernels times beta: the path is linear in them, and they are small."""
        beta, kernels = self.beta(), self.dep_conv(like)
        return kernels if beta is None else kernels * beta

    def beta(self) -> Tensor | None:
        """Factor of the convolution path, (1,), or ``None`` for 1."""
        if self.mix == "alpha_beta":
            return self.rate2
        return 1 - self.rate1 if self.mix == "alpha_complement" else None

    def add_paths(self, att: Tensor | None, conv: Tensor | None) -> Tensor:
        """Add the paths: alpha * F_att + beta * F_conv (paper Eq. 10).

        Args:
            att: F_att, or ``None`` where the mix has no attention path.
            conv: beta * F_conv, or ``None`` where the mix has no convolution path.
        """
        if conv is None:
            assert att is not None  # A mix has at least one path.
            return att
        if att is None:
            return conv
        if self.mix == "one_one":
            return att + conv
        return torch.addcmul(conv, att, self.rate1.to(att.dtype))

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, which asks this of every module before it looks inside."""
        raise InputError(
            f"torch.jit.script({type(self).__name__}): the choice of a backend is no TorchScript; "
            "use torch.jit.trace or torch.export"
        )

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds for one map of this input size (paper Table 1)."""
        raise NotImplementedError

    @staticmethod
    def call_size(*args: Any) -> tuple[int, ...]:
        """Arguments of ``multiply_adds`` for a call of the layer with ``args``."""
        raise NotImplementedError

    def convolution_multiply_adds(self, pixels: int, out_pixels: int) -> int:
        """Multiply-adds of the convolution path: 3 k_c² C a pixel and k_c⁴ C an output pixel."""
        if not self.has_convolution:
            return 0
        taps, maps = self.kernel_conv**2, self.maps
        return maps * self.head_dim * taps * pixels + taps**2 * self.dim * out_pixels
