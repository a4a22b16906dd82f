"""The curves of ``docs/ablation.md`` as SVG: ``python core/ablation/plot.py``, or ``make tables``.

The same results give the same files, byte by byte, with one version of matplotlib.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from results import read_rows  # noqa: E402
from summary import DEFAULT, LABELS, MODEL_NAMES, Mode, Results, collect  # noqa: E402

from acmix.errors import InputError  # noqa: E402
from acmix.mm.explain import input_errors_explained  # noqa: E402

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parents[1] / "docs" / "images"
TABLES = {
    "mix (Table 6)": [mode for mode in LABELS if mode[1] == DEFAULT[1]],
    "shift (Table 7)": [mode for mode in LABELS if mode[0] == DEFAULT[0] and mode[1] != DEFAULT[1]],
}
TABLES["shift (Table 7)"].insert(0, DEFAULT)
# Okabe and Ito's, which people who see fewer colours can tell apart.
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7")
MARKERS = "osD^vPX"
STYLE = {
    "svg.hashsalt": "acmix",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Results, model: str, path: Path) -> None:
    """Draw top-1 over training images, a panel for each table and length.

    Args:
        results: Of all models.
        model: The one to draw.
        path: The SVG file.
    """
    lengths = list(dict.fromkeys(cell.steps for cell in results.top1 if cell.model == model))
    size = dict(figsize=(4.2 * len(lengths), 6.6), sharex=True, sharey="col", squeeze=False)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(len(TABLES), len(lengths), **size)
        for line, (table, modes) in zip(panels, TABLES.items(), strict=True):
            for panel, steps in zip(line, lengths, strict=True):
                _draw_panel(panel, results, model, steps, modes)
                panel.set_title(f"{table}, {steps} batches", fontsize=9)
            line[0].set_ylabel("top-1 (%)")
            line[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
        for panel in panels[-1]:
            panel.set_xlabel("training images a class")
        seeds = len(results.seeds)
        title = f"Small {MODEL_NAMES[model]} on 8×8 digits: mean ± deviation of {seeds} seeds"
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


def _draw_panel(panel: Axes, results: Results, model: str, steps: str, modes: list[Mode]) -> None:
    """The curves of some modes; they stand a little apart, so that no bar hides another."""
    cells = [cell for cell in results.top1 if (cell.model, cell.steps) == (model, steps)]
    for number, mode in enumerate(modes):
        found = [
            (place, results.top1[cell][mode])
            for place, cell in enumerate(cells)
            if mode in results.top1[cell]
        ]
        aside = (number - (len(modes) - 1) / 2) * 0.06
        panel.errorbar(
            [place + aside for place, _ in found],
            [statistics.fmean(values) for _, values in found],
            [statistics.stdev(values) if values[1:] else 0 for _, values in found],
            label=LABELS[mode].replace(" (default)", ""),
            color=COLOURS[number],
            marker=MARKERS[number],
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    panel.set_xticks(range(len(cells)), [cell.images for cell in cells])


def draw_all(results: Results, folder: Path) -> list[Path]:
    """A file for each model; nothing where no seed has every run.

    Raises:
        InputError: The folder is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder; make it first")
    models = dict.fromkeys(cell.model for cell in results.top1) if results.seeds else {}
    paths = [folder / f"ablation-{model}.svg" for model in models]
    for model, path in zip(models, paths, strict=True):
        draw(results, model, path)
    return paths


@input_errors_explained()
def main() -> None:
    """Draw the files anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.csv", help="the runs")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the figures")
    options = parser.parse_args()
    for path in draw_all(collect(read_rows(options.results)), options.out):
        print(path)


if __name__ == "__main__":
    main()
