"""What the runs say: means and spreads over seeds, and paired differences from the default.

Differences are paired by seed: the runs of one seed saw the same images in the same order with the
same crops. Their test is the exact one that flips signs.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Rows = Iterable[dict[str, str]]
# Mix and shift.
Mode = tuple[str, str]
DEFAULT: Mode = ("alpha_beta", "learnable")
LABELS = {
    ("alpha_beta", "learnable"): "α, β; shifts learned on (default)",
    ("alpha_complement", "learnable"): "α, 1 − α",
    ("alpha_one", "learnable"): "α, 1",
    ("one_one", "learnable"): "1, 1",
    ("attention", "learnable"): "attention only",
    ("convolution", "learnable"): "convolution only",
    ("alpha_beta", "tensor"): "α, β; tensor shifts",
    ("alpha_beta", "fixed"): "α, β; fixed kernels",
    ("alpha_beta", "random"): "α, β; kernels from a random start",
}
MODEL_NAMES = {"resnet": "ResNet", "swin": "Swin"}
NOTHING = "–"


class Cell(NamedTuple):
    """What the modes are compared within: one model, number of images a class and length."""

    model: str
    images: str
    steps: str

    @property
    def order(self) -> tuple[str, int, float]:
        """Models by name, short runs first, few images first."""
        return self.model, int(self.steps), float("inf" if self.images == "all" else self.images)


class Results(NamedTuple):
    """Top-1 of the seeds that have every run, in percent.

    Attributes:
        seeds: The seeds.
        top1: Of every cell and mode, one for each seed.
        factors: Means of alpha and of beta over layers and seeds, ``None`` where there is none.
        sources: Device, versions and time of these runs, in words.
    """

    seeds: list[str]
    top1: dict[Cell, dict[Mode, list[float]]]
    factors: dict[Cell, dict[Mode, tuple[float | None, float | None]]]
    sources: str


def collect(rows: Rows) -> Results:
    """Put the lines of the file together; seeds that lack a run which another has are left out."""
    by_run = {(*_place(row), row["seed"]): row for row in rows}
    # Several jobs end in any order.
    pairs = sorted({(cell, mode) for cell, mode, _ in by_run}, key=lambda pair: pair[0].order)
    named = sorted({seed for *_, seed in by_run}, key=int)
    seeds = [seed for seed in named if all((*pair, seed) in by_run for pair in pairs)]
    top1: dict = {}
    factors: dict = {}
    for cell, mode in pairs:
        runs = [by_run[cell, mode, seed] for seed in seeds]
        top1.setdefault(cell, {})[mode] = [float(row["top1"]) for row in runs]
        means = tuple(_mean(row[name] for row in runs) for name in ("alpha", "beta"))
        factors.setdefault(cell, {})[mode] = means
    kept = [row for row in by_run.values() if row["seed"] in seeds]
    return Results(seeds, top1, factors, _sources(kept))


def _place(row: dict[str, str]) -> tuple[Cell, Mode]:
    return Cell(row["model"], row["images"], row["steps"]), (row["mix"], row["shift"])


def _mean(texts: Iterable[str]) -> float | None:
    values = [float(text) for text in texts if text]
    return statistics.fmean(values) if values else None


def _sources(rows: list[dict[str, str]]) -> str:
    names = dict.fromkeys(f"{row['device']}, {row['versions']}" for row in rows)
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    return f"{len(rows)} runs, {minutes:.0f} minutes of one processor: {'; '.join(names)}."


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip test: were it chance, each sign would be either.

    Of n differences the smallest p that is possible is 2 / 2^n, which needs n of one sign.
    """
    observed = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    sums = (abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips)
    # Sums of the same decimals in another order differ by roundings.
    return sum(value >= observed - 1e-9 for value in sums) / len(flips)


def smallest_p(seeds: int) -> float:
    """The smallest p of so many seeds."""
    return 2 / 2**seeds


def differences(of_cell: dict[Mode, list[float]], mode: Mode) -> list[float] | None:
    """Top-1 less that of the default, seed by seed; ``None`` where the default was not run."""
    if DEFAULT not in of_cell or mode not in of_cell:
        return None
    return [a - b for a, b in zip(of_cell[mode], of_cell[DEFAULT], strict=True)]


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation in words; of one value there is no deviation."""
    mean = f"{statistics.fmean(values):{sign}.1f}".replace("-", "−")
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def render(rows: Rows) -> str:
    """All tables, of a page or of a terminal."""
    results = collect(rows)
    if not results.seeds:
        return "No seed has every run yet."
    parts = [_overall(results), _one_sign(results)]
    for (model, steps), cells in _groups(results).items():
        parts += [f"### {MODEL_NAMES[model]}, {steps} batches", _of_cells(results, cells)]
    return "\n\n".join([*parts, _factors(results), results.sources])


def _overall(results: Results) -> str:
    """Differences averaged over the numbers of images, with their test."""
    groups = _groups(results)
    heads = [f"{MODEL_NAMES[model]}, {steps} batches" for model, steps in groups]
    lines = _head("difference from the default, points of top-1 (p)", heads)
    for mode in _modes(results):
        if mode == DEFAULT:
            continue
        found = [_averaged(results, cells, mode) for cells in groups.values()]
        texts = (NOTHING if d is None else spread(d, "+") + _p(d) for d in found)
        lines.append(_row(LABELS[mode], texts))
    return "\n".join(lines)


def _groups(results: Results) -> dict[tuple[str, str], list[Cell]]:
    """The cells of every model and length."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.top1:
        groups.setdefault((cell.model, cell.steps), []).append(cell)
    return groups


def _averaged(results: Results, cells: list[Cell], mode: Mode) -> list[float] | None:
    """Mean difference over the cells, seed by seed."""
    found = [d for cell in cells if (d := differences(results.top1[cell], mode)) is not None]
    return [statistics.fmean(column) for column in zip(*found, strict=True)] or None


def _p(values: Sequence[float]) -> str:
    return f" ({sign_flip_p(values):.3g})" if len(values) > 1 else ""


def _one_sign(results: Results) -> str:
    """How many differences are as clear as the test can say, and how many would be by chance."""
    found = [
        sign_flip_p(d)
        for of_cell in results.top1.values()
        for mode in of_cell
        if mode != DEFAULT and (d := differences(of_cell, mode)) is not None
    ]
    count, least = len(results.seeds), smallest_p(len(results.seeds))
    if count == 1:
        return "One seed: there is no spread and no test."
    reached = sum(p <= least for p in found)
    return (
        f"{count} seeds: the smallest p that the test can give is {least:g}. Cell by cell, in the "
        f"tables below, {reached} of {len(found)} differences reach it (marked *); "
        f"{least * len(found):.0f} would by chance alone."
    )


def _of_cells(results: Results, cells: list[Cell]) -> str:
    """Top-1 of some cells, with a mark where all seeds differ alike from the default."""
    names = ["all images" if c.images == "all" else f"{c.images} images a class" for c in cells]
    lines = _head("top-1 (%)", names)
    for mode in _modes(results):
        lines.append(_row(LABELS[mode], (_marked(results.top1[cell], mode) for cell in cells)))
    return "\n".join(lines)


def _marked(of_cell: dict[Mode, list[float]], mode: Mode) -> str:
    if mode not in of_cell:
        return NOTHING
    values, against = of_cell[mode], differences(of_cell, mode)
    tested = against is not None and mode != DEFAULT and len(values) > 1
    return spread(values) + " *" * (tested and sign_flip_p(against) <= smallest_p(len(values)))


def _factors(results: Results) -> str:
    """Means of alpha and beta at the end, of the longest runs on the most images."""
    last = {cell.model: cell for cell in results.top1}
    names = (f"{MODEL_NAMES[c.model]}, {c.images} images, {c.steps} batches" for c in last.values())
    lines = _head("α, β at the end (0.5 at the start)", list(names))
    for mode in _modes(results):
        pairs = [results.factors[cell].get(mode, (None, None)) for cell in last.values()]
        if any(value is not None for pair in pairs for value in pair):
            texts = (", ".join(NOTHING if v is None else f"{v:.2f}" for v in p) for p in pairs)
            lines.append(_row(LABELS[mode], texts))
    return "\n".join(lines)


def _modes(results: Results) -> list[Mode]:
    present = {mode for of_cell in results.top1.values() for mode in of_cell}
    return [mode for mode in LABELS if mode in present]


def _head(first: str, others: list[str]) -> list[str]:
    return [_row(first, others), "|---|" + "---|" * len(others)]


def _row(first: str, others: Iterable[str]) -> str:
    return f"| {' | '.join([first, *others])} |"
