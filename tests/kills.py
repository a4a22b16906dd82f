"""Runs in processes of their own that SIGKILL ends: at a moment, or at a file operation."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from forks import in_a_clean_fork
from runs import run

_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir")


class KillAtFileOperation:
    """Kills the process at the n-th opening for writing, renaming or removal of a run's file.

    Args:
        count: n.
    """

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, cfg: Config) -> None:
        """Watch the operations from now on."""
        folder = os.path.abspath(cfg.work_dir)

        def watch(event: str, args: tuple) -> None:
            if event not in _OPERATIONS or not str(args[0]).startswith(folder):
                return
            if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)


class KillAtRandom:
    """Kills the process after a random time.

    Args:
        seed: Of the random number.
        longest: In seconds.
    """

    def __init__(self, seed: int, longest: float) -> None:
        self.delay = random.Random(seed).uniform(0, longest)

    def __call__(self, cfg: Config) -> None:
        """Start the clock."""

        def kill() -> None:
            time.sleep(self.delay)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()


@HOOKS.register_module()
class KillHook(Hook):
    """Kills the last process of a run before an iteration, once.

    Args:
        iteration: Number of the iteration, from 0 on.
        trace: A file that says that it was done.
    """

    def __init__(self, iteration: int, trace: str) -> None:
        self.iteration, self.trace = iteration, Path(trace)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Kill this process, if it is time."""
        is_last = runner.rank == runner.world_size - 1
        if is_last and runner.iter == self.iteration and not self.trace.exists():
            self.trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(cfg: Config, kill: Callable[[Config], None]) -> bool:
    """Train in a process of its own; whether it was killed."""
    code = in_a_clean_fork(_train, cfg, kill)
    assert code in (0, -signal.SIGKILL), f"the run failed: {code}"
    return code != 0


def _train(cfg: Config, kill: Callable[[Config], None]) -> None:
    kill(cfg)
    run(cfg)
