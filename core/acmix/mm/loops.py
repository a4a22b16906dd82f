"""MMEngine's training loops, able to start at any batch."""

from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from acmix.mm.loaders import SeededBatches, start_pass


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """Epochs that can be resumed in their middle."""

    @property
    def batches_done(self) -> int | None:
        """Batches of this epoch that are behind it; ``None`` after epochs of another length."""
        done = self._iter - self._epoch * len(self.dataloader)
        return done if 0 <= done <= len(self.dataloader) else None

    def run_epoch(self) -> None:
        """One epoch, or what a stopped run left of it."""
        done = self.batches_done or 0
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        start_pass(self.dataloader, self._epoch, skip=done)
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """Iterations that are resumed without loading the data of the earlier ones."""

    def run(self) -> Any:
        """All iterations, or what a stopped run left of them."""
        self.dataloader_iterator = _Batches(self.dataloader, self._iter)
        return super().run()


class _Batches:
    """Batches without end; the first ``done`` calls, by which MMEngine passes by, load nothing."""

    def __init__(self, loader: DataLoader, done: int) -> None:
        self._loader, self._to_pass = loader, done
        self._epoch, self._skip = divmod(done, len(loader)) if _has_epochs(loader) else (0, done)
        self._iterator: Any = None

    def __next__(self) -> Any:
        if self._to_pass:
            self._to_pass -= 1
            return None
        # Begun here, as MMEngine's hooks still set the sampler back before the first iteration.
        self._iterator = self._iterator or self._start()
        if (batch := next(self._iterator, None)) is None:
            self._epoch, self._skip = self._epoch + 1, 0
            self._iterator = self._start()
            batch = next(self._iterator)
        return batch

    def _start(self) -> Any:
        if _has_epochs(self._loader):
            _sampler(self._loader).set_epoch(self._epoch)
        start_pass(self._loader, self._epoch, self._skip)
        return iter(self._loader)


def _sampler(loader: DataLoader) -> Any:
    batches = loader.batch_sampler
    return batches.sampler if isinstance(batches, SeededBatches) else loader.sampler


def _has_epochs(loader: DataLoader) -> bool:
    """Whether the sampler ends after each pass over the data: one without end has no epoch."""
    return hasattr(_sampler(loader), "epoch")
