"""Alternating timings, peak memory, and the table they are kept in."""

import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

REPEATS = 15


def device_name() -> str:
    """Processor and its vectors, threads and versions that a figure belongs to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    # Processors of several generations may have one name.
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({vectors}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def keep_memory() -> None:
    """Start the program again with an allocator that keeps what is freed.

    glibc may give the memory of large maps back after every call. Whether it does depends on the
    sizes around, and the page faults of the next call then take up to half of its time.
    """
    settings = {"MALLOC_TRIM_THRESHOLD_": str(4 << 30), "MALLOC_MMAP_THRESHOLD_": str(2 << 30)}
    if not settings.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def maps_last(x: Tensor) -> Tensor:
    """(B, N, D, H, W) with the channels of a pixel side by side."""
    flat = x.flatten(1, 2).to(memory_format=torch.channels_last)
    return flat.unflatten(1, x.shape[1:3]).detach()


def training_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward pass of the sum of the output."""

    def step() -> None:
        out = net(x)
        (out[-1] if isinstance(out, tuple) else out).sum().backward()
        net.zero_grad(set_to_none=True)

    return step


def alternate(
    sides: dict[str, Callable[[], object]], repeats: int = REPEATS, settle: int = 0
) -> dict[str, list]:
    """Seconds of every side, run in turn, so that a drifting machine is fair to all.

    The first ``settle`` runs of a turn are not counted: of sides that differ in size or threads,
    each has the caches and threads that it would have alone.
    """
    for run in sides.values():
        run()
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            for _ in range(settle):
                run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


class Table:
    """Rows of figures, printed as they come and kept as CSV."""

    columns = (
        "case",
        "mode",
        "side",
        "median",
        "p20",
        "p80",
        "unit",
        "ratio_to_first",
        "target",
        "device",
    )

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.device = device_name()

    def add(
        self, case: str, mode: str, figures: dict[str, list], unit: str, target: str = ""
    ) -> None:
        """Figures of several sides; ratios are to the median of the first, row by row of a run."""
        first = next(iter(figures.values()))
        for side, values in figures.items():
            ratios = [a / b for a, b in zip(values, first, strict=True)]
            low, *_, high = statistics.quantiles(values, n=5) if len(values) > 1 else values * 2
            row = dict(
                case=case,
                mode=mode,
                side=side,
                median=f"{statistics.median(values):.4g}",
                p20=f"{low:.4g}",
                p80=f"{high:.4g}",
                unit=unit,
                ratio_to_first=f"{statistics.median(ratios):.3f}",
                target=target if side == next(iter(figures)) else "",
                device=self.device,
            )
            self.rows.append(row)
            print(
                f"{case:34} {mode:10} {side:28} {row['median']:>8} {unit}  "
                f"×{row['ratio_to_first']}  {row['target']}",
                flush=True,
            )

    def write(self, path: Path) -> None:
        """Keep the rows, all or none; cases that were not run now, and other devices', stay."""
        cases, kept = {row["case"] for row in self.rows}, []
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            kept = [r for r in rows if r["case"] not in cases or r["device"] != self.device]
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept + self.rows)
        partial.replace(path)
