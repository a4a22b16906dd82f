"""What a process of a run holds beside weights and optimiser, saved for every one of them."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from acmix.errors import CheckpointError
from acmix.mm.randomness import random_state, set_random_state


def process_state(model: nn.Module, optimizer: Any, world_size: int) -> dict:
    """Random numbers, gradients that wait for more batches, and the buffers of one process.

    Args:
        model: The model, wrapped or not.
        optimizer: The optimiser wrapper.
        world_size: Processes of the run; of a single one the buffers are in the state dict.
    """
    model = unwrapped(model)
    state = {"random": random_state()}
    if _accumulates(optimizer):
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        state["gradients"] = _to_cpu(grads)
    if world_size > 1:
        state["buffers"] = _to_cpu(dict(model.named_buffers()))
    return state


def set_process_state(model: nn.Module, state: dict, source: str) -> None:
    """Put this process into a state that ``process_state`` gave.

    Args:
        model: The model, wrapped or not.
        state: From a checkpoint, so of unknown origin.
        source: File name for messages.

    Raises:
        CheckpointError: It is no such state, or one of another model.
    """
    model = unwrapped(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    with torch.no_grad():
        for name, grad in _tensors_like(state.get("gradients", {}), parameters, source).items():
            parameters[name].grad = grad.to(parameters[name])
        for name, value in _tensors_like(state.get("buffers", {}), buffers, source).items():
            buffers[name].copy_(value)
    set_random_state(state.get("random"), source)


def unwrapped(model: Any) -> Any:
    """The model without what runs it in several processes."""
    while is_model_wrapper(model):
        model = model.module
    return model


def _accumulates(optimizer: Any) -> bool:
    """Whether the gradients so far wait for those of further batches."""
    return isinstance(optimizer, OptimWrapper) and not optimizer.should_update()


def _to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _tensors_like(saved: Any, own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    fits = isinstance(saved, dict) and all(
        name in own and isinstance(tensor, Tensor) and tensor.shape == own[name].shape
        for name, tensor in saved.items()
    )
    if not fits:
        raise CheckpointError(f"{source}: holds gradients or buffers of another model")
    return saved
