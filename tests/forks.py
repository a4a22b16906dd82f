"""Forks of a process that has everything imported and has computed nothing yet.

A fork of the tests' own process inherits what earlier tests left there: threads, caches, hooks.
"""

import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

from acmix.mm import cli


@cache
def _context() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forks", "acmix_swin", "runs"])
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = here if before is None else os.pathsep.join([here, before])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def in_a_clean_fork(function: Callable, *args: object) -> int:
    """Call a function of a module; its exit code, or minus the signal that ended it."""
    process = _context().Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode


def train_with_limit(output: Path, limit: int, project: Path, arguments: Sequence[str]) -> None:
    """The training command, for a fork, where no file may be larger than a number of bytes."""
    with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as `ulimit -f` does
        cli.train(project, arguments)
