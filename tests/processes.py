"""Several processes on this machine that compute together."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from forks import join_all, start_clean_fork


def together(count: int, meeting: Path | str, function: Callable[[int], None]) -> None:
    """Call ``function(rank)`` in every one of ``count`` processes that talk through gloo.

    Args:
        count: Number of processes.
        meeting: A file that doesn't exist yet, where they meet.
        function: What each of them does.

    Raises:
        AssertionError: One of them failed; its traceback is on stderr.
    """
    processes = [start_clean_fork(_run, rank, count, meeting, function) for rank in range(count)]
    join_all(processes)
    assert not any(process.exitcode for process in processes), "a process failed, see above"


def _run(rank: int, count: int, meeting: Path | str, function: Callable[[int], None]) -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=count)
    function(rank)
    dist.destroy_process_group()
