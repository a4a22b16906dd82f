"""The operators as tests call them: arguments by case, and the reference beside the function."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import acmix
from acmix import reference
from support import assert_within_error_budget, gradients


@dataclass(frozen=True)
class Case:
    """One call; an operator reads the sizes that it has.

    Attributes:
        size: Height and width of the maps.
        heads: Heads of an attention, groups of weights of an aggregation.
        depth: Channels of a head.
        kernel_conv: Side of the kernels of the convolution path.
        per_group: Outputs of the convolution path for each channel, if not one a head.
        reflect: Whether neighbourhoods reflect.
        without: Optional tensors that are left out.
        layout: Storage of the arguments and of the gradient, see ``stored``.
    """

    size: tuple[int, int] = (9, 9)
    kernel_size: int = 7
    stride: int = 1
    dilation: int = 1
    batch: int = 2
    heads: int = 3
    depth: int = 5
    kernel_conv: int = 3
    per_group: int | None = None
    reflect: bool = True
    without: tuple[str, ...] = ()
    layout: str = "contiguous"

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return tuple(-(-side // self.stride) for side in self.size)


# What kernels tell apart: borders that reflect or are cut, queries between strides, coarse grids of
# keys, rows that fill vectors or not, heads that share one, storage.
CASES = {
    "odd size": Case(),
    "stride": Case((7, 12), stride=2),
    "stride and dilation": Case((17, 7), 5, stride=3, dilation=2),
    "dilation": Case((11, 13), dilation=3, kernel_size=3),
    "cut to the image": Case((4, 4)),
    "cut along one axis": Case((3, 20), stride=2),
    "cut with dilation": Case((7, 12), dilation=3),
    "one pixel": Case((1, 1)),
    "kernel of one": Case((6, 9), 1, stride=2, kernel_conv=1),
    "kernel of nine": Case((11, 17), 9, kernel_conv=5),
    "no images": Case((6, 5), 3, batch=0, stride=2),
    "one head of one channel": Case((9, 23), 5, heads=1, depth=1),
    "many heads": Case((5, 6), 3, heads=16, depth=4),
    "whole vectors": Case((8, 16), 3, heads=4, depth=16, batch=1),
    "more than a vector": Case((6, 40), 3, heads=2, depth=33, batch=1),
    "channels last": Case((9, 7), 5, stride=2, depth=16, layout="channels_last"),
    "sliced": Case((9, 7), 5, depth=16, layout="sliced"),
    "expanded": Case((9, 23), 3, stride=2, layout="expanded"),
}


def stored(x: Tensor, layout: str) -> Tensor:
    """Equal values in other storage; ``expanded`` repeats the first entry."""
    if layout == "channels_last" and x.dim() > 3:
        order = (0, x.dim() - 2, x.dim() - 1, *range(1, x.dim() - 2))
        back = sorted(range(x.dim()), key=lambda axis: order[axis])
        return x.permute(order).contiguous().permute(back)
    if layout == "sliced":
        spread = x.repeat_interleave(2, dim=-1)
        return torch.cat([spread[:1], spread])[1:, ..., ::2] if x.dim() > 1 else spread[::2]
    return x[:1].expand_as(x) if layout == "expanded" and x.dim() > 1 else x


class Operator:
    """One function of ``acmix``; subclasses give its name, shapes and options.

    Attributes:
        name: Of the function, in ``acmix`` and in ``acmix.reference``.
        window: Names of its options that are sizes.
        mixed: Names of its tensors that may be of another floating dtype than the first.
        keeps_format: Whether channels-last maps give a channels-last result.
        others: Cases beside ``CASES``.
    """

    name: str
    window: tuple[str, ...] = ("kernel_size", "stride", "dilation")
    mixed: tuple[str, ...] = ()
    keeps_format = True
    cases = CASES
    others: dict[str, Case] = {}

    def shapes(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by the name of the argument."""
        raise NotImplementedError

    def options(self, case: Case) -> dict:
        """The arguments that are no tensors."""
        return {name: getattr(case, name) for name in self.window}

    def inputs(self, case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
        """Random tensors that depend on the case alone."""
        shapes = self.shapes(case)
        generator = torch.Generator().manual_seed(sum(map(sum, shapes.values())))
        tensors = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in shapes.items()
        }
        return [None if name in case.without else x for name, x in tensors.items()]

    def call(self, *tensors: Tensor | None, **options) -> Tensor:
        """The function itself; of several results, all of them in one tensor."""
        return getattr(acmix, self.name)(*tensors, **options)

    def plain(self, *tensors: Tensor | None, **options) -> Tensor:
        """What the function means."""
        return getattr(reference, self.name)(*tensors, **options)

    def on(self, case: Case, backend: str | None) -> Callable[..., Tensor]:
        """The function of the tensors alone, for a case and a backend."""
        return self._stored(self.call, case, backend=backend)

    def reference_on(self, case: Case) -> Callable[..., Tensor]:
        """The reference of the tensors alone, for a case."""
        return self._stored(self.plain, case)

    def _stored(self, function: Callable, case: Case, **others) -> Callable[..., Tensor]:
        def run(*tensors):
            tensors = [x if x is None else stored(x, case.layout) for x in tensors]
            # Of the output too, whose gradient then comes back in that storage.
            return stored(function(*tensors, **self.options(case), **others), case.layout)

        return run

    def check(self, case: Case, backend: str | None) -> None:
        """Values and gradients are those of the reference."""
        expected, expected_grads = _expected(self, case)
        actual, grads = gradients(self.on(case, backend), *self.inputs(case))
        torch.testing.assert_close(actual, expected)
        for name, ours, theirs in zip(self.shapes(case), grads, expected_grads, strict=True):
            torch.testing.assert_close(
                ours, theirs, msg=lambda text, name=name: f"gradient of {name}: {text}"
            )

    def check_budget(self, case: Case, backend: str | None, dtype: torch.dtype) -> None:
        """Errors in ``dtype`` are at most twice the reference's, and one rounding."""
        functions = self.on(case, backend), self.reference_on(case)
        assert_within_error_budget(*functions, self.inputs(case), dtype, {})


@functools.cache
def _expected(operator: Operator, case: Case) -> tuple[Tensor, list[Tensor | None]]:
    """Output and gradients of the reference; the same for all backends."""
    return gradients(operator.reference_on(case), *operator.inputs(case))


class Attention(Operator):
    name = "sliding_window_attention"
    others = {"no position": Case((9, 12), 5, without=("position",))}

    def shapes(self, case):
        maps = (case.batch, case.heads, case.depth, *case.size)
        return dict(q=maps, k=maps, v=maps, position=maps[2:])


class Convolution(Operator):
    name = "convolution_path"
    window = ("stride",)
    others = {
        # Up to four heads the layer is folded into the kernels.
        "layer of five heads": Case((9, 7), heads=5, depth=16),
        "layer of eight heads": Case((6, 20), heads=8, depth=3, stride=2),
        "layer stored channels last": Case((9, 7), heads=6, depth=16, layout="channels_last"),
        "rows of several bands": Case((40, 37), heads=5, depth=8, stride=2),
        "no bias": Case((9, 7), heads=2, without=("fc_bias",)),
        "no bias, layer": Case((9, 7), heads=6, without=("fc_bias",)),
        "one output a channel": Case((9, 7), stride=2, per_group=1),
        "shifts of tensors": Case((9, 6), stride=2, without=("kernels",)),
    }

    def shapes(self, case):
        taps, maps = case.kernel_conv**2, 3 * case.heads
        outs = case.depth * (case.per_group or case.heads)
        kernels = (outs, taps, case.kernel_conv, case.kernel_conv)
        qkv = (case.batch, maps * case.depth, *case.size)
        return dict(qkv=qkv, fc_weight=(taps, maps), kernels=kernels, fc_bias=(taps,))


class SplitConvolution(Convolution):
    """Of maps in two tensors."""

    def shapes(self, case):
        (batch, _, *size), *weights = super().shapes(case).values()
        parts = (batch, case.heads * case.depth, *size), (batch, 2 * case.heads * case.depth, *size)
        names = ("qkv", "rest", "fc_weight", "kernels", "fc_bias")
        return dict(zip(names, (*parts, *weights), strict=True))

    def call(self, qkv, rest, *weights, **options):
        return acmix.convolution_path(qkv, *weights, rest=rest, **options)

    def plain(self, qkv, rest, *weights, **options):
        return reference.convolution_path(torch.cat([qkv, rest], dim=1), *weights, **options)


class Paths(Operator):
    name = "sliding_window_paths"
    others = {
        "layer of six heads": Case((9, 7), 5, stride=2, heads=6),
        "layer stored channels last": Case((9, 7), 5, heads=6, depth=16, layout="channels_last"),
        "narrow maps": Case((7, 7), heads=4, depth=16),
    }

    def shapes(self, case):
        convolution = Convolution().shapes(case)
        qkv, fc_weight, kernels, _ = convolution.values()
        position = (case.depth, *case.size)
        return dict(qkv=qkv, position=position, fc_weight=fc_weight, kernels=kernels)

    def call(self, *tensors, **options):
        return torch.cat(acmix.sliding_window_paths(*tensors, **options), dim=1)

    def plain(self, qkv, position, fc_weight, kernels, *, kernel_size, stride, dilation):
        heads = fc_weight.shape[1] // 3
        q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
        window = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
        attention = reference.sliding_window_attention(q, k, v, position, **window)
        path = reference.convolution_path(qkv, fc_weight, kernels, stride=stride)
        return torch.cat([attention.flatten(1, 2), path], dim=1)


class Mix(Paths):
    name = "mixed_paths"

    def shapes(self, case):
        factor = (case.heads * case.depth, 1, 1)
        return super().shapes(case) | dict(alpha=(1,), beta=(1,), offset=factor)

    def call(self, *tensors, **options):
        return acmix.mixed_paths(*tensors, **options)

    def plain(self, qkv, position, fc_weight, kernels, alpha, beta, offset, **options):
        paths = super().plain(qkv, position, fc_weight, kernels, **options).chunk(2, dim=1)
        alpha, beta = (1 if factor is None else factor for factor in (alpha, beta))
        return alpha * paths[0] + beta * paths[1] + (0 if offset is None else offset)


class Neighbourhood(Operator):
    keeps_format = False
    others = {
        "zeros outside": Case((9, 7), 5, stride=2, reflect=False),
        "zeros outside with dilation": Case((9, 12), dilation=2, reflect=False),
    }

    def options(self, case):
        return super().options(case) | dict(reflect=case.reflect)

    def plain(self, x, y, *, kernel_size, dilation, reflect, **options):
        # A map too small to reflect has zeros around.
        reflect = reflect and dilation * (kernel_size // 2) < min(x.shape[2:])
        window = dict(kernel_size=kernel_size, dilation=dilation, reflect=reflect)
        return super().plain(x, y, **window, **options)


class Aggregation(Neighbourhood):
    name = "neighbourhood_aggregation"

    def shapes(self, case):
        v = (case.batch, case.heads * case.depth, *case.size)
        return dict(v=v, w=(case.batch, case.heads, case.kernel_size**2, *case.out_size))


class Difference(Neighbourhood):
    name = "neighbourhood_difference"

    def shapes(self, case):
        maps = (case.batch, case.depth, *case.size)
        return dict(a=maps, b=maps)


class WindowAttention(Operator):
    name = "window_attention"
    window = ()
    mixed = ("bias", "mask")
    names = ("odd size", "one pixel", "no images", "one head of one channel", "many heads")
    cases = {name: CASES[name] for name in (*names, "channels last", "sliced", "expanded")}
    others = {"no mask": Case((3, 4), without=("mask",))}

    def shapes(self, case):
        length, windows = sum(case.size), 3
        maps = (case.batch * windows, case.heads, length, case.depth)
        bias, mask = (case.heads, length, length), (windows, length, length)
        return dict(q=maps, k=maps, v=maps, bias=bias, mask=mask)


class MapWindowAttention(Operator):
    """Two by three windows of the side of the kernel, or narrower."""

    name = "map_window_attention"
    window = ()
    mixed = ("bias", "mask")
    keeps_format = False
    others = {
        "no mask": Case((3, 4), without=("mask",)),
        "windows narrower than high": Case((9, 3), 7, heads=2, depth=16),
    }

    def sides(self, case):
        side = min(case.kernel_size, 9)
        return side, min(side, case.size[1])

    def options(self, case):
        return dict(window_size=self.sides(case))

    def shapes(self, case):
        (height, width), length = self.sides(case), math.prod(self.sides(case))
        qkv = (case.batch, 2 * height, 3 * width, 3 * case.heads * case.depth)
        return dict(qkv=qkv, bias=(case.heads, length, length), mask=(6, length, length))

    def plain(self, qkv, bias, mask, *, window_size):
        heads, (height, width) = bias.shape[0], window_size
        windows = qkv.unflatten(2, (3, width)).unflatten(1, (2, height))
        q, k, v = windows.unflatten(5, (3, heads, -1)).permute(5, 0, 1, 3, 6, 2, 4, 7)
        maps = (x.flatten(4, 5).flatten(0, 2) for x in (q, k, v))
        out = reference.window_attention(*maps, bias, mask)
        out = out.unflatten(2, (height, width)).unflatten(0, (-1, 2, 3))
        return out.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class Recorder(TorchDispatchMode):
    """Remembers every call of a compiled operator, as ``calls``: (operator, arguments)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "acmix":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
