"""Going on where a run stopped: the state of each process, and a validation that was missed."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from acmix.mm.loaders import start_pass
from acmix.mm.loops import ResumableEpochLoop
from acmix.mm.process_state import set_process_state


@HOOKS.register_module()
class ResumeHook(Hook):
    """Puts every process into the state that it had when the checkpoint was written."""

    priority = "LOWEST"

    def before_train(self, runner) -> None:
        """Restore this process, then repeat the validation if the run was stopped before it."""
        resumed, runner.resumed_state = runner.resumed_state, None
        if resumed is None:
            return
        processes = resumed.get("processes", [])
        if len(processes) == runner.world_size:
            set_process_state(runner.model, processes[runner.rank], runner.resumed_from)
        else:
            runner.logger.warning(
                f"{runner.resumed_from}: holds the random state of {len(processes)} processes, and "
                f"this run has {runner.world_size}; it goes on, but not exactly as it would have"
            )
        loop = runner.train_loop
        if isinstance(loop, ResumableEpochLoop) and loop.batches_done is None:
            runner.logger.warning(
                f"{runner.resumed_from}: iteration {loop.iter} is not in epoch {loop.epoch + 1} "
                f"now, as an epoch has {len(loop.dataloader)} iterations; schedules that count "
                "iterations go on from another place, so keep train_dataloader.batch_size times "
                "the number of processes as it was"
            )
        if not resumed["meta"]["validated"] and _is_validated_now(runner):
            runner.logger.info("Repeating the validation that the stopped run did not finish")
            runner.val_loop.run()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the states of all processes with what can be resumed."""
        if "optimizer" in checkpoint:
            checkpoint["processes"] = runner.process_states

    def before_val_epoch(self, runner) -> None:
        """Validate on the same samples every time."""
        start_pass(runner.val_dataloader, epoch=0)


def _is_validated_now(runner) -> bool:
    """Whether MMEngine's loops validate at the step where the run is."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    step, last = (loop.iter, loop.max_iters) if by_iteration else (loop.epoch, loop.max_epochs)
    return step >= max(loop.val_begin, 1) and (step % loop.val_interval == 0 or step == last)
