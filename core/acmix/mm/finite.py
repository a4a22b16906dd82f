"""A run whose numbers are no numbers any more is stopped, and says where it happened."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from torch import Tensor

from acmix.errors import InputError
from acmix.mm.process_state import unwrapped
from acmix.modules.base import ACmixBase

_SHOWN = 4


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stops a training whose loss, gradients or weights are not finite."""

    def before_train(self, runner) -> None:
        """Look for the layers whose alpha and beta are reported."""
        layers = [m for m in unwrapped(runner.model).modules() if isinstance(m, ACmixBase)]
        self._rates = {
            symbol: [getattr(layer, name) for layer in layers if hasattr(layer, name)]
            for symbol, name in zip(("alpha", "beta"), ACmixBase.RATES, strict=True)
        }

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep alpha and beta, since the step that fails overwrites them."""
        rates = {symbol: rates for symbol, rates in self._rates.items() if rates}
        self._before = {symbol: torch.cat(rates).detach() for symbol, rates in rates.items()}

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Check the losses and the norm of the gradients.

        Raises:
            InputError: One of them is not finite.
        """
        for name, value in _watched(runner, outputs or {}):
            if not math.isfinite(value):
                where = self._circumstances(runner, data_batch)
                raise InputError(
                    f"{_place(runner)}: {name} is {value}{where}; "
                    "lower the learning rate or lengthen its warm-up, clip gradients with "
                    "optim_wrapper.clip_grad, look at these images, and go on with --resume"
                )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Check the weights that are to be saved.

        Raises:
            InputError: Some are not finite; earlier checkpoints are untouched.
        """
        weights = checkpoint["state_dict"]
        for name, _ in unwrapped(runner.model).named_parameters():
            if name in weights and not torch.isfinite(weights[name]).all():
                where = self._circumstances(runner, None)
                raise InputError(
                    f"{_place(runner)}: {name} is not finite{where}, so no "
                    "checkpoint is saved; lower the learning rate or clip gradients with "
                    "optim_wrapper.clip_grad, and go on with --resume"
                )

    def _circumstances(self, runner, batch: Any) -> str:
        """Learning rate, the smallest and largest alpha and beta, and the images of the batch."""
        rates = runner.optim_wrapper.get_lr().values()
        parts = [f"; learning rate {max(rate for group in rates for rate in group):.3g}"]
        parts += [
            f"{symbol} {values.min().item():.3g} to {values.max().item():.3g}"
            for symbol, values in self._before.items()
        ]
        images = _images(batch)
        if images:
            rest = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
            parts.append(f"images {', '.join(images[:_SHOWN])}{rest}")
        return ", ".join(parts)


def _watched(runner, outputs: dict) -> Iterator[tuple[str, float]]:
    for name, value in outputs.items():
        if "loss" in name:
            yield name, float(value.detach() if isinstance(value, Tensor) else value)
    # Mixed precision finds its loss scale by such gradients, and passes them over.
    scalars = runner.message_hub.log_scalars
    if "train/grad_norm" in scalars and not isinstance(runner.optim_wrapper, AmpOptimWrapper):
        yield "the norm of the gradients", float(scalars["train/grad_norm"].current())


def _place(runner) -> str:
    return f"iteration {runner.iter + 1} (epoch {runner.epoch + 1})"


def _images(batch: Any) -> list[str]:
    samples = batch.get("data_samples") if isinstance(batch, dict) else None
    if not isinstance(samples, Sequence):
        return []
    paths = (getattr(sample, "img_path", None) for sample in samples)
    return [str(path) for path in paths if path]
