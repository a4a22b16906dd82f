"""Which children of a layer may be read instead of called, and what is done with them."""

from functools import partial
from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acmix.geometry import pixel_grid
from acmix.modules.positions import SizeCache
from acmix.tracing import unflatten

Child = TypeVar("Child", bound=nn.Module)

_grids = SizeCache()


def is_plain(child: nn.Module, kind: type[Child]) -> TypeGuard[Child]:
    """Whether calling ``child`` does what a ``kind`` does with its weights, and nothing else.

    A child that is more must be called: hooks compute the weights of spectral norm, weight norm
    and pruning of the old kind, offloading replaces ``forward``, and parametrizations, adapters
    and quantisation put another class in its place.
    """
    return (
        type(child) is kind
        and not child._forward_pre_hooks
        and not child._forward_hooks
        and not child._backward_pre_hooks
        and not child._backward_hooks
        and "forward" not in child.__dict__
    )


def has_statistics(norm: _BatchNorm) -> bool:
    """Whether a norm is a fixed affine map: in evaluation, with running statistics and weights."""
    return not norm.training and norm.running_var is not None and norm.affine


def affine_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and bias, each (C,), of a norm that ``has_statistics``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def project(x: Tensor, *convs: nn.Conv2d) -> Tensor:
    """The 1×1 convolutions ``convs`` of ``x`` side by side, by one product where all are plain.

    Args:
        x: (B, C_in, H, W).
        convs: With biases.

    Returns:
        (B, channels of all, H, W).
    """
    biases = []
    for conv in convs:
        bias = conv.bias if is_plain(conv, nn.Conv2d) else None
        if bias is None:
            return torch.cat([conv(x) for conv in convs], dim=1)
        biases.append(bias)
    return F.conv2d(x, torch.cat([conv.weight for conv in convs]), torch.cat(biases))


def encode_position(conv: nn.Conv2d, like: Tensor) -> Tensor:
    """The 1×1 convolution ``conv`` of the coordinates of every pixel, (D, H, W).

    Args:
        conv: 2 channels to D.
        like: Maps (..., H, W) in whose size and dtype, and on whose device, the result is.
    """
    size = like.shape[-2:]
    if not is_plain(conv, nn.Conv2d) or conv.bias is None:
        # Its weights may be elsewhere, of another dtype or none at all until it is called.
        return conv(pixel_grid(size, like))[0].to(like.dtype)
    make = partial(pixel_grid, size, conv.weight)
    grid = _grids.get(size, conv.weight, make)[0].flatten(1)
    # A product, as torch's convolution of two channels is slow; channels last, as the CPU kernels
    # read it.
    position = F.linear(grid.t(), conv.weight.flatten(1), conv.bias)
    return unflatten(position.t(), 1, size).to(like.dtype)


def reset_children(layer: nn.Module) -> None:
    """Call ``reset_parameters`` of every module below ``layer`` that has one."""
    for module in layer.modules():
        reset = getattr(module, "reset_parameters", None)
        if module is not layer and callable(reset):
            reset()
