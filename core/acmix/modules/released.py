"""The layer under the authors' name and with their arguments, for copies of it in other code."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acmix.modules.acmix2d import ACmix2d

_BIAS = "dep_conv.bias"
_ARGUMENTS = ("in_planes", "out_planes", "kernel_att", "head", "kernel_conv", "stride", "dilation")


class ACmix(ACmix2d):
    """``ACmix2d`` with the name and the argument order of the authors' class.

    Many repositories carry a copy of that class. With this one in its place their models build,
    load and, where they were pickled whole, unpickle; parameters have the same names. A copy that
    kept the bias of ``dep_conv`` is served too: the bias is added to the output, times beta, and is
    left out where it is zero, as in all weights of the authors.

    Args:
        in_planes: Channels of the input.
        out_planes: Channels of the output, a multiple of ``head``.
        kernel_att: Side of the attention window in keys, odd.
        head: Number of heads.
        kernel_conv: Side of the convolution that the path stands for, odd.
        stride: Stride of the output.
        dilation: Distance of neighbouring keys of the attention, in pixels.
        **options: Further arguments of ``ACmix2d``: ``mix``, ``shift``, ``backend``.

    Raises:
        InputError: An argument, or the shape of the input, is wrong.

    Examples:
        >>> ACmix(64, 128, 7, 4, 3, 2)(torch.rand(1, 64, 33, 57)).shape
        torch.Size([1, 128, 17, 29])
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel_att: int = 7,
        head: int = 4,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            in_planes, out_planes, head, kernel_att, kernel_conv, stride, dilation, **options
        )

    @property
    def in_planes(self) -> int:
        """Channels of the input."""
        return self.in_channels

    @property
    def out_planes(self) -> int:
        """Channels of the output."""
        return self.out_channels

    @property
    def head(self) -> int:
        """Number of heads."""
        return self.num_heads

    def added(self) -> Tensor | None:
        """What is added to the sum of the paths: the bias of the convolution path times beta."""
        bias = self._scaled_bias()
        return super().added() if bias is None else bias

    def _scaled_bias(self) -> Tensor | None:
        """Beta times the bias of the convolution path, (C, 1, 1)."""
        bias = getattr(self.dep_conv, "bias", None) if self.has_convolution else None
        if bias is None:
            return None
        beta = self.beta()
        return (bias if beta is None else bias * beta)[:, None, None]

    def _fold(self) -> None:
        offset = self._scaled_bias()
        super()._fold()
        if offset is not None:
            self.offset = nn.Parameter(offset)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load, and have a bias of the convolution path where the weights have one."""
        bias = state_dict.get(prefix + _BIAS)
        if bias is not None and not bias.any():
            bias = None
            del state_dict[prefix + _BIAS]
        if f"{prefix}dep_conv.weight" in state_dict:
            parameter = None
            if bias is not None:
                parameter = nn.Parameter(torch.empty_like(self.dep_conv.weight[:, 0, 0, 0]))
            self.dep_conv.register_parameter("bias", parameter)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unpickle; an object of the copied class becomes a layer with its weights."""
        if "num_heads" in state:
            super().__setstate__(state)
            return
        old = nn.Module()
        old.__dict__.update(state)
        ACmix.__init__(self, **{name: state[name] for name in _ARGUMENTS if name in state})
        known = {name.partition(".")[0] for name in (*self.parameter_names(), _BIAS)}
        weights = old.state_dict()
        weights = {n: w for n, w in weights.items() if n.partition(".")[0] in known}
        self.to(weights["fc.weight"]).load_state_dict(weights)
        self.train(state["training"])
