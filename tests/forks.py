"""Forks of a process that has others' packages imported and has computed nothing yet.

To import them takes longer than most of what a process then does. A fork of the tests' own process
would inherit what earlier tests left there: threads, caches, hooks, registered classes.
"""

import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import cloudpickle

# Read when they are imported.
_VARIABLES = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}


@cache
def _context() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with mock.patch.dict(os.environ, _VARIABLES, PYTHONPATH=os.pathsep.join(paths)):
        forkserver.ensure_running()
    return context


def start_clean_fork(function: Callable, *args: object) -> BaseProcess:
    """Start a process that calls a function; what tests define is sent as it is."""
    for argument in (function, *args):
        module = getattr(argument, "__module__", None) or ""
        if module.rpartition(".")[2].startswith("test_"):  # which a fresh process can't import
            cloudpickle.register_pickle_by_value(sys.modules[module])
    call = cloudpickle.dumps((function, args))
    # No daemon, as these may have no processes of their own.
    process = _context().Process(target=_call, args=(call,))
    process.start()
    return process


def in_a_clean_fork(function: Callable, *args: object) -> int:
    """Call a function; the exit code, or minus the signal that ended it."""
    process = start_clean_fork(function, *args)
    process.join()
    return process.exitcode


def join_all(processes: Sequence[BaseProcess]) -> None:
    """Wait for processes that compute together; those that wait for one that failed are killed."""
    running = list(processes)
    while running:
        wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()
    for process in processes:
        process.join()


def _call(pickled: bytes) -> None:
    function, args = cloudpickle.loads(pickled)
    function(*args)


def run_python(
    *command: object, cwd: Path, environments: Sequence[Mapping[str, str]] = ({},)
) -> CompletedProcess:
    """Run ``python *command`` in a fork, or in one for each of several environments at once.

    Args:
        command: A script, ``-m`` and a module, or ``-c`` and code; then arguments.
        cwd: The working directory.
        environments: What is added to this process's variables.

    Returns:
        An exit code other than zero, if there is one, and what all of them printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes, outputs = [], []
        for number, environment in enumerate(environments):
            stdout, stderr = (Path(folder, f"{number}.{name}") for name in ("out", "err"))
            stdout.touch()
            stderr.touch()
            variables = {**os.environ, **_VARIABLES, **environment}
            arguments = list(map(str, command)), str(cwd), variables, stdout, stderr
            processes.append(start_clean_fork(_run_python, *arguments))
            outputs.append((stdout, stderr))
        join_all(processes)
        stdout, stderr = ("".join(p[i].read_text() for p in outputs) for i in (0, 1))
    code = next((p.exitcode for p in processes if p.exitcode), 0)
    return CompletedProcess(command, code, stdout, stderr)


def _run_python(
    command: list[str], cwd: str, environment: dict[str, str], stdout: Path, stderr: Path
) -> None:
    """As the interpreter does; also what compiled code and processes of this one print is kept."""
    for descriptor, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
    multiprocessing.set_start_method(None, force=True)  # as it is where nothing was started yet
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    kind, *arguments = command
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[1:]], ""
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv, sys.path[0] = arguments, cwd
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


def train_with_limit(output: Path, limit: int, project: Path, arguments: Sequence[str]) -> None:
    """The training command, for a fork, where no file may be larger than a number of bytes."""
    from acmix.mm import cli

    with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as `ulimit -f` does
        cli.train(project, arguments)
