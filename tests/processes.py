"""Several processes on this machine that compute together, as forks of the test's own."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def together(count: int, meeting: Path | str, function: Callable[[int], None]) -> None:
    """Call ``function(rank)`` in every one of ``count`` processes that talk through gloo.

    Args:
        count: Number of processes.
        meeting: A file that doesn't exist yet, where they meet.
        function: What each of them does.

    Raises:
        AssertionError: One of them failed; its traceback is on stderr.
    """
    children = [_fork(rank, count, meeting, function) for rank in range(count)]
    failed = []
    for _ in range(count):
        child, status = os.wait()
        children.remove(child)
        if status:
            failed.append(child)
            for other in children:
                os.kill(other, signal.SIGKILL)
    assert not failed, f"{len(failed)} of {count} processes failed"


def _fork(rank: int, count: int, meeting: Path | str, function: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(CUDA_VISIBLE_DEVICES="", LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=count)
        function(rank)
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
