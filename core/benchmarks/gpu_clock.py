"""Alternating timings by CUDA events, and CUDA graphs; without a device a rehearsal of the same."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

Run = Callable[[], object]
_REPEATS, _WARM_UP = 15, 3
_COPIED_BYTES = 256 << 20


class Figures(NamedTuple):
    """Milliseconds of one side, and how they compare."""

    median: float
    p20: float
    p80: float


class Clock:
    """Times runs on the CUDA device, or where there is none only runs them once."""

    def __init__(self) -> None:
        self.is_real = torch.cuda.is_available()
        self.device = "cuda" if self.is_real else "cpu"

    def bandwidth(self) -> float:
        """Bytes per second of a large copy, read and written."""
        source = torch.zeros(_COPIED_BYTES if self.is_real else 1, dtype=torch.uint8)
        source = source.to(self.device)
        target = torch.empty_like(source)
        median = self.alternate({"copy": lambda: target.copy_(source)})["copy"].median
        return 2 * source.nbytes / (median / 1e3)

    def alternate(self, sides: dict[str, Run]) -> dict[str, Figures]:
        """Every side in turn, so that a drifting device is fair to all; without those too large."""
        if not self.is_real:
            for run in sides.values():
                run()
            return dict.fromkeys(sides, Figures(1.0, 1.0, 1.0))
        sides = {name: run for name, run in sides.items() if _fits(name, run)}
        pairs = {name: [] for name in sides}
        for _ in range(_REPEATS):
            for name, run in sides.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                pairs[name].append((begin, end))
        torch.cuda.synchronize()
        return {
            name: _figures([begin.elapsed_time(end) for begin, end in events])
            for name, events in pairs.items()
        }

    def graph(self, run: Run) -> Run:
        """A replay of what ``run`` does, without its launches from Python."""
        if not self.is_real:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


def _fits(name: str, run: Run) -> bool:
    """Warm up a side; whether the device's memory is enough for it."""
    try:
        for _ in range(_WARM_UP):
            run()
    except torch.OutOfMemoryError:
        print(f"{name} does not fit the device's memory")
        torch.cuda.empty_cache()
        return False
    return True


def _figures(milliseconds: list[float]) -> Figures:
    low, *_, high = statistics.quantiles(milliseconds, n=5)
    return Figures(statistics.median(milliseconds), low, high)
