"""Parameters and multiply-adds of models with ACmix layers."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acmix.modules import ACmixBase


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_multiply_adds(model: nn.Module, input_size: tuple[int, ...] = (3, 224, 224)) -> int:
    """Multiply-adds of one forward pass of one image.

    ACmix layers are counted by the paper's Table 1 whatever backend runs them; the rest as torch
    counts it: convolutions and matrix products, no norms or activations.

    Args:
        model: Takes one tensor (1, C, H, W).
        input_size: (C, H, W).

    Returns:
        Multiply-adds; the paper prints them as "FLOPs".

    Examples:
        >>> count_multiply_adds(ACmix2d(64, 64), (64, 28, 28))
        22453760
    """
    return count_by_module(model, input_size)[""]


def count_by_module(
    model: nn.Module, input_size: tuple[int, ...] = (3, 224, 224)
) -> dict[str, int]:
    """Multiply-adds of every module that is called in one forward pass of one image, by name.

    A module's count has those of the modules below it; ``""`` is the model. Arguments and what is
    counted are as for ``count_multiply_adds``.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    try:
        with (
            torch.no_grad(),
            counted_layers(model) as layers,
            FlopCounterMode(display=False) as counter,
        ):
            model.eval()(image)
    finally:
        model.train(training)
    root = type(model).__name__
    counts = {
        name.removeprefix(root).removeprefix("."): sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    counts[""] = counter.get_total_flops()
    return {name: _with_own_counts(name, counts, layers) for name in {*counts, *layers}}


def _with_own_counts(name: str, operations: dict[str, int], layers: dict[str, int]) -> int:
    """Multiply-adds of a module, ACmix layers in it by their own count."""
    prefix = f"{name}." if name else ""
    inside = [layer for layer in layers if layer == name or layer.startswith(prefix)]
    replaced = sum(operations.get(layer, 0) for layer in inside)
    # torch counts a multiply-add as two operations.
    return (operations.get(name, 0) - replaced) // 2 + sum(layers[layer] for layer in inside)


@contextmanager
def counted_layers(model: nn.Module) -> Iterator[dict[str, int]]:
    """The ACmix layers of a model by name, with the multiply-adds of their calls in the context."""
    counts = {name: 0 for name, _ in _layers(model)}

    def add(name: str, parts: dict[str, int]) -> None:
        counts[name] += sum(parts.values())

    with _heard(model, add):
        yield counts


@contextmanager
def recorded_parts(model: nn.Module) -> Iterator[dict[str, Counter[str]]]:
    """The same by the parts of ``ACmixBase.multiply_adds_by_part``."""
    counts: dict[str, Counter[str]] = {name: Counter() for name, _ in _layers(model)}
    with _heard(model, lambda name, parts: counts[name].update(parts)):
        yield counts


@contextmanager
def _heard(model: nn.Module, hear: Callable[[str, dict[str, int]], None]) -> Iterator[None]:
    """Call ``hear`` with name and parts of every call of an ACmix layer."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(layer: ACmixBase, args: tuple, kwargs: dict, output: object) -> None:
            hear(name, layer.count_call_by_part(*args, **kwargs))

        return hook

    handles = [m.register_forward_hook(hook_of(n), with_kwargs=True) for n, m in _layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> Iterator[tuple[str, ACmixBase]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, ACmixBase))
