"""Children of a layer as plain ones: what they do in evaluation, with nothing else attached."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from acmix.checks import require
from acmix.modules.children import is_plain

Pointwise = TypeVar("Pointwise", nn.Conv2d, nn.Linear)

# Side of the maps on which a child is tried, so that one that reads its neighbours is noticed.
_SIDE = 3


@torch.no_grad()
def baked(child: nn.Module, name: str, inputs: int, kind: type[Pointwise]) -> Pointwise:
    """A plain ``kind`` with the effective weights of ``child``.

    A child that is more than its weights (spectral norm, pruning, an adapter) is called on a basis
    of its inputs, and then on other maps to see that it is nothing but those weights.

    Args:
        child: A 1×1 convolution or a linear layer, or what stands in the place of one.
        name: Its name, for messages.
        inputs: Channels that it reads.
        kind: ``nn.Conv2d`` or ``nn.Linear``.

    Raises:
        InputError: In evaluation the child is no affine map of the channels of a pixel.
    """
    if is_plain(child, kind):
        return joined(kind, child)
    side = _SIDE if kind is nn.Conv2d else 1
    like = next(child.parameters(), torch.empty(0))
    basis = torch.cat([torch.zeros(1, inputs), torch.eye(inputs)]).to(like)
    probe = torch.arange(2 * side**2 * inputs).to(like).sin().view(2, side, side, inputs)
    bias, *columns = _call(child, basis[:, None, None], kind)[:, 0, 0]
    weight = torch.stack([column - bias for column in columns], dim=1)
    found = _call(child, probe, kind)
    expected = probe @ weight.T + bias
    fits = found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-6)
    remedy = "is no affine map of the channels of a pixel; take off what is attached to it"
    require(fits, name, type(child).__name__, remedy)
    return _made(kind, weight, bias if bias.any() else None)


@torch.no_grad()
def joined(kind: type[Pointwise], *children: Pointwise) -> Pointwise:
    """One plain ``kind`` that gives the outputs of plain ``children`` side by side."""
    weight = torch.cat([child.weight.flatten(1) for child in children])
    if all(child.bias is None for child in children):
        return _made(kind, weight, None)
    biases = (c.weight.new_zeros(len(c.weight)) if c.bias is None else c.bias for c in children)
    return _made(kind, weight, torch.cat(list(biases)))


def joined_projections(layer: nn.Module, inputs: int) -> nn.Conv2d:
    """The 1×1 convolutions ``conv1``, ``conv2`` and ``conv3`` of a layer as one."""
    names = ("conv1", "conv2", "conv3")
    convs = [baked(getattr(layer, name), name, inputs, nn.Conv2d) for name in names]
    return joined(nn.Conv2d, *convs)


def _made(kind: type[Pointwise], weight: Tensor, bias: Tensor | None) -> Pointwise:
    outputs, inputs = weight.shape
    options: dict[str, Any] = dict(kernel_size=1) if kind is nn.Conv2d else {}
    made = kind(inputs, outputs, bias=bias is not None, device="meta", **options)
    made.weight = nn.Parameter(weight.clone().view(made.weight.shape))
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


def _call(child: nn.Module, pixels: Tensor, kind: type[nn.Module]) -> Tensor:
    """What ``child`` makes of channels-last maps (B, H, W, C), channels last."""
    if kind is nn.Linear:
        return child(pixels)
    return child(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
