"""Parameters and multiply-adds of models with ACmix layers."""

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
    counts, root = counter.get_flop_counts(), type(model).__name__
    names = (f"{root}.{name}" if name else root for name in layers)
    replaced = sum(sum(counts.get(name, {}).values()) for name in names)
    # torch counts a multiply-add as two operations.
    return (counter.get_total_flops() - replaced) // 2 + sum(layers.values())


@contextmanager
def counted_layers(model: nn.Module) -> Iterator[dict[str, int]]:
    """The ACmix layers of a model by name, with the multiply-adds of their calls in the context."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ACmixBase)}
    counts = dict.fromkeys(layers, 0)

    def hook_of(name: str) -> Callable[..., None]:
        def add(layer: ACmixBase, args: tuple, kwargs: dict, output: object) -> None:
            counts[name] += layer.count_call(*args, **kwargs)

        return add

    handles = [m.register_forward_hook(hook_of(n), with_kwargs=True) for n, m in layers.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
