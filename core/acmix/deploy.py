"""The deploy form of a network: every ACmix layer folded, with the BatchNorm behind it."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn

from acmix.checks import require
from acmix.modules import ACmixBase
from acmix.modules.children import is_plain
from acmix.modules.deployable import is_foldable

Model = TypeVar("Model", bound=nn.Module)


def deploy(model: Model, *inputs: Any) -> Model:
    """Put every ACmix layer of a model into its deploy form, in place; the outputs stay the same.

    See ``ACmix2d.switch_to_deploy``. A BatchNorm that follows a layer, in a ``nn.Sequential`` or as
    ``bn2`` follows ``conv2`` in a residual block, becomes part of it and an ``nn.Identity`` takes
    its place; other pairs are for ``fuse_norm``. The model is in evaluation afterwards and doesn't
    train; for that make a fresh one, and load the weights that were saved before.

    Args:
        model: A network with ACmix layers, or such a layer.
        *inputs: Inputs of the model, for one pass that makes the positions of their size, so that
            an export has them as constants.

    Returns:
        The model.

    Raises:
        InputError: The model has no ACmix layer, or a child of one is no fixed affine map.

    Examples:
        >>> model = torch.nn.Sequential(ACmix2d(8, 8), torch.nn.BatchNorm2d(8)).eval()
        >>> deploy(model)[1]
        Identity()
    """
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, ACmixBase)]
    require(bool(layers), "model", type(model).__name__, "give one with ACmix layers")
    for parent, name, layer, norm in list(_pairs(model)):
        fuse_norm(layer, norm)
        parent.set_submodule(name, nn.Identity())
    for layer in layers:
        layer.switch_to_deploy()
    if inputs:
        with torch.no_grad():
            model(*inputs)
    return model


def fuse_norm(layer: ACmixBase, norm: nn.Module) -> None:
    """Make the BatchNorm behind a layer part of it, and the layer its deploy form, in place.

    ``out = s * (alpha * F_att + beta * F_conv) + t`` with the norm's scale s and offset t: s goes
    into the kernels of the convolution and into alpha. Take the norm out of the network afterwards.

    Args:
        layer: ``ACmix2d`` or ``VectorACmix``.
        norm: In evaluation, with statistics and weights; nothing else reads the layer's output.

    Raises:
        InputError: The pair is none that can be folded; the message says why.

    Examples:
        >>> layer, norm = ACmix2d(8, 8).eval(), torch.nn.BatchNorm2d(8).eval()
        >>> fuse_norm(layer, norm)
        >>> layer.deployed
        True
    """
    require(isinstance(layer, ACmixBase), "layer", type(layer).__name__, "give an ACmix layer")
    layer.switch_to_deploy(norm)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, ACmixBase, nn.Module]]:
    """Parent, name of the norm, layer and norm, of each layer that a norm alone follows."""
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for parent in model.modules():
        for (name, layer), (norm_name, norm) in pairwise(parent.named_children()):
            if not (isinstance(layer, ACmixBase) and layer.takes_norm and is_foldable(norm)):
                continue
            follows = _in_sequence(parent) or _in_block(parent, name, norm_name)
            if follows and is_plain(norm, type(norm)) and uses[layer] == uses[norm] == 1:
                yield parent, norm_name, layer, norm


def _in_sequence(parent: nn.Module) -> bool:
    """Whether a module calls its children one after the other."""
    return isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward


def _in_block(parent: nn.Module, layer: str, norm: str) -> bool:
    """Whether these are names like ``conv2`` and ``bn2``, which residual blocks call in order."""
    alike = re.fullmatch(r"(?:bn|norm)(\d*)", norm)
    # mmcv's ConvModule has its norm behind the convolution whenever it is called.
    order = [part for part in getattr(parent, "order", ()) if part in ("conv", "norm")]
    after = order != ["norm", "conv"]
    return after and alike is not None and layer == f"conv{alike[1]}"
