"""Alternating timings, peak memory, and the table they are kept in."""

import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 7


def device_name() -> str:
    """Processor, threads and versions that a figure belongs to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def alternate(sides: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, list]:
    """Seconds of every side, run in turn, so that a drifting machine is fair to all."""
    for run in sides.values():
        run()
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
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
        """Keep the rows, all or none; cases in the file that were not run now stay."""
        cases, kept = {row["case"] for row in self.rows}, []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["case"] not in cases]
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept + self.rows)
        partial.replace(path)
