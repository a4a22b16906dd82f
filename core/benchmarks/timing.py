"""Alternating timings of several sides and the table that they are kept in."""

import csv
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch


@dataclass
class Row:
    """One side of one case. Times are in milliseconds of wall clock; ratio is to ``base``."""

    case: str
    side: str
    median: float
    p20: float
    p80: float
    base: str
    ratio: float
    note: str = ""


def alternate(sides: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, list[float]]:
    """Milliseconds of every side, one call of each in turn, so that all see the same machine."""
    times = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat > 0:  # the first warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def compare(case: str, sides: dict[str, Callable], base: str, repeats: int = 9) -> list[Row]:
    """Rows of one case; ``ratio`` says how many times longer than ``base`` a side takes."""
    times = alternate(sides, repeats)
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    rows = []
    for name, samples in times.items():
        low, *_, high = statistics.quantiles(samples, n=5)
        rows.append(Row(case, name, medians[name], low, high, base, medians[name] / medians[base]))
    return rows


def device_name() -> str:
    """The accelerator, or the processor and the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def write(rows: list[Row], path: Path) -> None:
    """Store the table with the device and the versions that it was made on."""
    import acmix

    versions = f"acmix {acmix.__version__}, torch {torch.__version__}"
    names = ["device", "versions", *(field.name for field in fields(Row))]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        for row in rows:
            cells = (f"{cell:.4g}" if isinstance(cell, float) else cell for cell in astuple(row))
            out.writerow([device_name(), versions, *cells])


def show(rows: list[Row]) -> None:
    """Print the table."""
    for row in rows:
        times = f"{row.median:9.2f} ms ({row.p20:.2f}..{row.p80:.2f})"
        print(f"{row.case:34} {row.side:14} {times:34} {row.ratio:7.2f} x {row.base} {row.note}")
