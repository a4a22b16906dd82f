"""Parameters and multiply-adds of models with ACmix layers."""

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
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ACmixBase)}
    inside = dict.fromkeys(layers, 0)

    def count_layer(name: str):
        def hook(layer: ACmixBase, inputs: tuple, output: object) -> None:
            inside[name] = layer.multiply_adds(*layer.call_size(*inputs))

        return hook

    handles = [m.register_forward_hook(count_layer(name)) for name, m in layers.items()]
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(image)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    counts = counter.get_flop_counts()
    root = type(model).__name__
    replaced = sum(sum(counts.get(f"{root}.{name}", {}).values()) for name in layers)
    # torch counts a multiply-add as two operations.
    return (counter.get_total_flops() - replaced) // 2 + sum(inside.values())
