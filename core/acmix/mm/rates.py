"""Alpha and beta of every layer in the log of a training."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from acmix.analysis.curves import ALPHA, BETA
from acmix.analysis.rates import mixing_rates
from acmix.mm.process_state import unwrapped
from acmix.modules import ACmixBase


@HOOKS.register_module()
class RatesHook(Hook):
    """Gives alpha and beta of every ACmix layer to the visualizer, so to JSON and TensorBoard.

    The line of the log in the terminal stays as it is. The rates are those that are trained, also
    where weights are averaged beside them. One process reads them, at once for all layers.

    Args:
        epochs: Epochs from one entry to the next.
        iterations: The same in iterations, for a run that has no epochs.
    """

    def __init__(self, epochs: int = 1, iterations: int = 500) -> None:
        self.epochs, self.iterations = epochs, iterations

    def before_train(self, runner) -> None:
        """Look whether the model has such layers."""
        modules = unwrapped(runner.model).modules()
        self._on = runner.rank == 0 and any(isinstance(m, ACmixBase) for m in modules)
        self._counts_iterations = isinstance(runner.train_loop, IterBasedTrainLoop)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Log the rates of a run without epochs."""
        if self._counts_iterations and self.every_n_train_iters(runner, self.iterations):
            self._log(runner, runner.iter + 1)

    def after_train_epoch(self, runner) -> None:
        """Log the rates of a run with epochs."""
        if not self._counts_iterations and self.every_n_epochs(runner, self.epochs):
            self._log(runner, runner.iter)

    def _log(self, runner, step: int) -> None:
        if not self._on:
            return
        scalars = {}
        for rates in mixing_rates(unwrapped(runner.model)):
            scalars[ALPHA + rates.layer] = rates.alpha
            scalars[BETA + rates.layer] = rates.beta
        runner.visualizer.add_scalars(scalars, step=step, file_path=f"{runner.timestamp}.json")
