"""What every ACmix layer shares: the convolution path and the mix of the two paths."""

from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from acmix.backends.folding import MAX_FOLDED_MAPS, fold
from acmix.checks import check_choice, check_odd, check_positive, require
from acmix.errors import InputError
from acmix.functional import convolution_path
from acmix.mixing import add_paths
from acmix.modules.baking import baked
from acmix.modules.children import is_plain, reset_children
from acmix.modules.deployable import Deployable
from acmix.modules.positions import SizeCache
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


class ACmixBase(Deployable):
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

    # No layer where it is folded into the kernels.
    fc: nn.Conv2d | None
    # Of the layers with a position encoding.
    conv_p: nn.Conv2d

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
        self._sizes = SizeCache()
        # What a norm behind the layer adds, once it is folded in, (C, 1, 1).
        self.offset: nn.Parameter | None
        self.register_parameter("offset", None)
        if mix.startswith("alpha"):
            self.rate1 = nn.Parameter(torch.empty(1))
        if mix == "alpha_beta":
            self.rate2 = nn.Parameter(torch.empty(1))
        self.fc = None
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
        self._refuse_deployed("reset_parameters()")
        reset_children(self)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Set the learned scalars of the mix to 0.5; subclasses add what else is their own."""
        for name in self.RATES:
            if hasattr(self, name):
                nn.init.constant_(getattr(self, name), 0.5)

    def convolve(self, qkv: Tensor, rest: Tensor | None = None, *, stride: int = 1) -> Tensor:
        """F_conv of the projections times beta, for a mix with a convolution path.

        Args:
            qkv: The maps in the order q, k, v, (B, ..., H, W).
            rest: The last of them, where they are a tensor of their own.
            stride: Stride of the output.

        Returns:
            (B, C, ceil(H / stride), ceil(W / stride)).
        """
        by_tensors = self.dep_conv.mode == "tensor"
        if rest is not None and not (self.fc is None or is_plain(self.fc, nn.Conv2d)):
            # A layer that is called reads all maps.
            qkv, rest = torch.cat([qkv, rest], dim=1), None
        qkv, fc_weight, fc_bias = self._layer_over_maps(qkv)
        out = convolution_path(
            qkv,
            fc_weight,
            None if by_tensors else self.scaled_kernels(fc_weight),
            fc_bias,
            rest=rest,
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
        fc = self.fc
        if fc is None:
            # Folded; a bias became the kernel of a map of ones.
            layer = qkv.new_empty(0, self.maps)
            return qkv, layer, layer[:, 0] if self.dep_conv.inputs > self.maps else None
        if is_plain(fc, nn.Conv2d):
            return qkv, fc.weight.flatten(1), fc.bias
        maps = qkv.unflatten(1, (-1, self.head_dim))
        taps = fc(maps.flatten(2, 3)).unflatten(2, maps.shape[2:4])
        return taps.flatten(1, 2), torch.eye(taps.shape[1]).to(taps), None

    def scaled_kernels(self, like: Tensor) -> Tensor:
        """The shift kernels times beta: the path is linear in them, and they are small."""
        beta, kernels = self.beta(), self.dep_conv(like.detach())
        return kernels if beta is None else kernels * beta

    def _of_position(self, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """What ``make()`` makes of the encoding ``conv_p`` for maps like ``like``, kept."""
        conv = self.conv_p
        if not (self.deployed or is_plain(conv, nn.Conv2d)):
            return make()
        # A deployed layer does not change.
        sources = () if self.deployed else (conv.weight, conv.bias)
        given = [x for x in sources if x is not None]
        return self._sizes.get(like.shape[-2:], like, make, given)

    def beta(self) -> Tensor | None:
        """Factor of the convolution path, (1,), or ``None`` for 1."""
        if self.mix == "alpha_beta":
            return self.rate2
        return 1 - self.rate1 if self.mix == "alpha_complement" else None

    def alpha(self) -> Tensor | None:
        """Factor of the attention path, (1,), or ``None`` for 1; (C, 1, 1) with a norm."""
        return getattr(self, "rate1", None)

    def add_paths(self, att: Tensor | None, conv: Tensor | None) -> Tensor:
        """Add the paths: alpha * F_att + beta * F_conv (paper Eq. 10).

        A compiled kernel may add them as it writes them; not where this method is replaced.

        Args:
            att: F_att, or ``None`` where the mix has no attention path.
            conv: beta * F_conv, or ``None`` where the mix has no convolution path.
        """
        return add_paths(att, conv, self.alpha(), self.added())

    def added(self) -> Tensor | None:
        """What is added to the sum of the paths, (C, 1, 1), or ``None`` for 0."""
        return self.offset

    def _fold(self) -> None:
        """Fold beta, the shift kernels and a small layer over the maps into one kernel."""
        if self.fc is None:
            return
        fc = baked(self.fc, "fc", self.maps, nn.Conv2d)
        layer = fc.weight.flatten(1)
        kernels = self.scaled_kernels(layer)
        if not self.dep_conv.learnable:
            kernels = kernels.repeat_interleave(self.num_heads, dim=0)
        self.fc = None if self.maps <= MAX_FOLDED_MAPS else fc
        if self.fc is None:
            layer = layer if fc.bias is None else torch.cat([layer, fc.bias[:, None]], dim=1)
            kernels = fold(kernels, layer)
        self.dep_conv = ShiftKernels.of(kernels, self.head_dim)
        if self.mix == "alpha_beta":
            del self.rate2
        if self.mix.startswith("alpha"):
            self.mix = "alpha_one"

    def _fold_alpha(self, proj: nn.Linear) -> None:
        """Multiply a projection of the attention alone by alpha, which is a factor no more."""
        alpha = self.alpha()
        if alpha is not None:
            proj.weight.mul_(alpha)
            proj.bias.mul_(alpha)
            del self.rate1
            self.mix = "one_one"

    def _fold_norm(self, scale: Tensor, offset: Tensor) -> None:
        """Scale both paths, the attention by alpha: it is linear in v, which both paths read."""
        column, alpha = scale.view(-1, 1, 1), self.alpha()
        if self.has_convolution:
            self.dep_conv.weight.mul_(column[..., None])
        if self.has_attention:
            self.rate1 = nn.Parameter(column if alpha is None else column * alpha)
        if self.mix == "one_one":
            self.mix = "alpha_one"
        moved = 0 if self.offset is None else self.offset * column
        self.offset = nn.Parameter(offset.view(-1, 1, 1) + moved)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Convert as torch does; what was made of the parameters is made anew."""
        self._sizes.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load as torch does; what was made of the parameters is made anew."""
        self._sizes.clear()
        super()._load_from_state_dict(*args)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, which asks this of every module before it looks inside."""
        raise InputError(
            f"torch.jit.script({type(self).__name__}): the choice of a backend is no TorchScript; "
            "use torch.jit.trace or torch.export"
        )

    def multiply_adds(self, *size: int) -> int:
        """Multiply-adds for one map of a size that ``call_size`` gives (paper Table 1)."""
        return sum(self.multiply_adds_by_part(*size).values())

    def multiply_adds_by_part(self, height: int, width: int) -> dict[str, int]:
        """The same apart: ``projections``, ``attention`` and ``convolution``.

        What one path alone needs, such as the projection of an attention's output, is its own.
        """
        raise NotImplementedError

    @staticmethod
    def call_size(*args: Any, **kwargs: Any) -> tuple[int, ...]:
        """Arguments of ``multiply_adds`` for a call of the layer with ``args``."""
        raise NotImplementedError

    @staticmethod
    def as_maps(x: Tensor, *size: int) -> Tensor:
        """What is laid out as the layer's output, as (B, C, H, W), without extra tokens.

        Args:
            x: An output, or projections before it.
            *size: Of ``x``, as ``call_size`` gives it.
        """
        return x

    def count_call(self, *args: Any, **kwargs: Any) -> int:
        """Multiply-adds of a call of the layer, for all maps of the batch."""
        return sum(self.count_call_by_part(*args, **kwargs).values())

    def count_call_by_part(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        """The same by the parts of ``multiply_adds_by_part``."""
        x = args[0] if args else kwargs["x"]
        parts = self.multiply_adds_by_part(*map(int, self.call_size(*args, **kwargs)))
        return {name: len(x) * count for name, count in parts.items()}

    def convolution_multiply_adds(self, pixels: int, out_pixels: int) -> int:
        """Multiply-adds of the convolution path: 3 k_c² C a pixel and k_c⁴ C an output pixel."""
        if not self.has_convolution:
            return 0
        taps, maps = self.kernel_conv**2, self.maps
        return maps * self.head_dim * taps * pixels + taps**2 * self.dim * out_pixels
