"""Forks of a process that has everything imported and has computed nothing yet.

A fork of the tests' own process inherits what earlier tests left there: threads, caches, hooks.
"""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import cloudpickle

from acmix.mm import cli

_PROJECTS = ("acmix_pvt", "acmix_resnet", "acmix_san", "acmix_swin")


@cache
def _context() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forks", *_PROJECTS, "processes", "runs"])
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


def start_clean_fork(function: Callable, *args: object) -> multiprocessing.process.BaseProcess:
    """Start a process that calls a function; what tests define is sent as it is."""
    for argument in (function, *args):
        module = getattr(argument, "__module__", None) or ""
        if module.rpartition(".")[2].startswith("test_"):  # which a fresh process can't import
            cloudpickle.register_pickle_by_value(sys.modules[module])
    call = cloudpickle.dumps((function, args))
    process = _context().Process(target=_call, args=(call,), daemon=True)
    process.start()
    return process


def in_a_clean_fork(function: Callable, *args: object) -> int:
    """Call a function; the exit code, or minus the signal that ended it."""
    process = start_clean_fork(function, *args)
    process.join()
    return process.exitcode


def _call(pickled: bytes) -> None:
    function, args = cloudpickle.loads(pickled)
    function(*args)


def train_with_limit(output: Path, limit: int, project: Path, arguments: Sequence[str]) -> None:
    """The training command, for a fork, where no file may be larger than a number of bytes."""
    with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as `ulimit -f` does
        cli.train(project, arguments)
