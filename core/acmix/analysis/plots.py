"""Figures of what the analysis found."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from acmix.analysis.attention import AttentionMaps
from acmix.analysis.costs import PARTS, StageCosts
from acmix.analysis.curves import ALPHA, BETA, Curves
from acmix.analysis.drawing import WIDTH, Figure, empty_figure, grid, styled
from acmix.analysis.observing import stage_of
from acmix.analysis.paths import PathMaps
from acmix.analysis.rates import MixingRates

ATTENTION, CONVOLUTION = "#c2410c", "#0369a1"
_COLOURS = {
    "projections": "#a16207",
    "attention": ATTENTION,
    "convolution": CONVOLUTION,
    "other": "#a8a29e",
}
_UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))
_QUERY_COLOURS = ("#facc15", "#22d3ee", "#f472b6", "#a3e635")


@styled
def rates_figure(rates: Sequence[MixingRates]) -> Figure:
    """|alpha| and |beta| of every layer, and log|alpha / beta| (the paper's Figure 5)."""
    place, names = range(len(rates)), [r.layer for r in rates]
    figure = empty_figure(4.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(place, [abs(r.alpha) for r in rates], "o-", color=ATTENTION, label="|α| attention")
    upper.plot(
        place, [abs(r.beta) for r in rates], "s--", color=CONVOLUTION, label="|β| convolution"
    )
    most = max(max(abs(r.alpha), abs(r.beta)) for r in rates)
    upper.set_ylim(0, 1.1 * most or 1)
    upper.set_ylabel("rate")
    upper.legend(frameon=False)
    ratios = [r.log_ratio if math.isfinite(r.log_ratio) else 0.0 for r in rates]
    colours = [ATTENTION if ratio > 0 else CONVOLUTION for ratio in ratios]
    lower.bar(place, ratios, color=colours)
    lower.axhline(0, color="black", linewidth=0.8)
    lower.set_ylabel("log|α/β|")
    lower.set_xlabel("layer")
    _mark_stages([upper, lower], names)
    return figure


def _mark_stages(axes: Sequence[Any], names: Sequence[str]) -> None:
    """A line between stages, and their names in place of the layers'."""
    stages = [stage_of(name) for name in names]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stages[i - 1] != stage]
    middles = [
        (start + end - 1) / 2 for start, end in zip(starts, [*starts[1:], len(names)], strict=True)
    ]
    for axis in axes:
        for start in starts[1:]:
            axis.axvline(start - 0.5, color="#d6d3d1", linewidth=0.8, zorder=0)
        axis.set_xlim(-0.6, len(names) - 0.4)
    labels = [stages[start] for start in starts]
    nearest = min((b - a for a, b in itertools.pairwise(middles)), default=len(names))
    # About 45 letters fit side by side; where neighbours would touch, they are slanted.
    slanted = 45 * nearest / len(names) < max(map(len, labels))
    axes[-1].set_xticks(
        middles, labels, rotation=30 if slanted else 0, ha="right" if slanted else "center"
    )


@styled
def attention_figure(picture: np.ndarray, maps: Sequence[AttentionMaps]) -> Figure:
    """Attention of each query, the mean over heads, on the image; a row for each layer.

    Args:
        picture: The image as the model sees it, (H, W, 3) uint8, RGB.
        maps: Of one image.
    """
    queries = len(maps[0].queries)
    figure, axes = grid(len(maps), queries, picture)
    for row, found in zip(axes, maps, strict=True):
        for number, axis in enumerate(row):
            _overlay(axis, picture, found.weights[number].mean(dim=0).cpu().numpy())
            _mark(axis, picture, found.queries[number], _QUERY_COLOURS[number % 4])
        row[0].set_title(found.layer, loc="left")
    return figure


@styled
def paths_figure(picture: np.ndarray, maps: Sequence[PathMaps]) -> Figure:
    """What each path adds over the image, on one scale a layer; a row for each layer.

    Args:
        picture: As for ``attention_figure``.
        maps: Of one image.
    """
    figure, axes = grid(len(maps), 3, picture)
    for row, found in zip(axes, maps, strict=True):
        terms = {"α·attention": found.attention, "β·convolution": found.convolution}
        top = max(float(x.max()) for x in terms.values() if x is not None)
        row[0].imshow(picture)
        row[0].set_title(found.layer, loc="left")
        for axis, (name, values) in zip(row[1:], terms.items(), strict=True):
            if values is None:
                axis.text(0.5, 0.5, "no such path", ha="center", transform=axis.transAxes)
            else:
                shape = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
                shown = values[0].cpu().numpy()
                axis.imshow(shown, cmap="viridis", vmin=0, vmax=top or 1, extent=shape)
            axis.set_xlabel(name)
    return figure


@styled
def field_figure(field: Tensor, shares: dict[float, int]) -> Figure:
    """The effective receptive field.

    Args:
        field: (H, W), as ``effective_receptive_field`` gives it.
        shares: Sides of the squares that hold a share of it, to be drawn.
    """
    height, width = field.shape
    figure = empty_figure(min(WIDTH * 0.85 * height / width, 1.6 * WIDTH))
    axis = figure.subplots()
    values = field.cpu().numpy()
    # The square root, as most of it would be black.
    shown = axis.imshow(np.sqrt(values / (values.max() or 1)), cmap="magma", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axis, label="√(gradient / largest)", shrink=0.8)
    for (share, side), style in zip(shares.items(), ("-", "--", ":"), strict=False):
        left, top = ((length - 1 - side) / 2 for length in (width, height))
        x, y = [left, left + side, left + side, left, left], [top, top, top + side, top + side, top]
        label = f"{share:.0%} within {side} px"
        axis.plot(x, y, style, color="#22d3ee", linewidth=1.5, label=label)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=len(shares), frameon=False)
    return figure


@styled
def costs_figure(costs: Sequence[StageCosts]) -> Figure:
    """Parameters and multiply-adds of every stage, by what they are for."""
    figure = empty_figure(4.6)
    figure.subplots(2, 1)
    kinds: dict[str, Callable[[StageCosts], Any]] = {
        "parameters": lambda c: c.parameters,
        "multiply-adds": lambda c: c.multiply_adds,
    }
    for axis, (title, of) in zip(figure.axes, kinds.items(), strict=True):
        left = np.zeros(len(costs))
        most = max(1, *(sum(of(c).values()) for c in costs))
        factor, unit = next(
            x for x in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if most >= x[0]
        )
        for part in PARTS:
            values = np.array([of(c)[part] / factor for c in costs])
            axis.barh([c.stage for c in costs], values, left=left, color=_COLOURS[part], label=part)
            left += values
        axis.invert_yaxis()
        axis.set_title(f"{title} ({unit})" if unit else title, loc="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


@styled
def curves_figure(curves: Curves) -> Figure:
    """Losses, scores, and rates of all layers over a training."""
    panels = _panels(curves)
    figure = empty_figure(2.1 * len(panels) + 0.3)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, points, colour in lines:
            steps, values = zip(*points, strict=True)
            marker = "." if len(points) < 30 else None
            axis.plot(steps, values, marker=marker, color=colour, label=label, linewidth=1.2)
        axis.set_title(title, loc="left")
        if any(label for label, *_ in lines):
            axis.legend(frameon=False)
    return figure


def _panels(curves: Curves) -> dict[str, list[tuple[str | None, list, str | None]]]:
    panels: dict[str, list] = {}
    losses = {tag: points for tag, points in curves.train.items() if "loss" in tag}
    panels["loss, by iteration"] = [
        (tag if len(losses) > 1 else None, points, None) for tag, points in losses.items()
    ]
    for tag, points in curves.val.items():
        if "time" not in tag:
            panels[f"{tag}, by validation"] = [(None, points, None)]
    rates = []
    for prefix, label, colour in ((ALPHA, "α", ATTENTION), (BETA, "β", CONVOLUTION)):
        found = [points for tag, points in curves.train.items() if tag.startswith(prefix)]
        rates += [(None if i else label, points, colour) for i, points in enumerate(found)]
    panels["α and β of every layer, by iteration"] = rates
    return {title: lines for title, lines in panels.items() if lines}


def _overlay(axis: Any, picture: np.ndarray, weights: np.ndarray) -> None:
    """Weights over the image, which is grey: strong ones hide it."""
    height, width = picture.shape[:2]
    grey = picture.mean(axis=2)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
    most = np.abs(weights).max() or 1.0
    signed = weights.min() < -1e-6 * most
    colours = dict(cmap="RdBu_r", vmin=-most) if signed else dict(cmap="inferno", vmin=0)
    axis.imshow(
        weights,
        alpha=0.25 + 0.65 * np.abs(weights) / most,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        vmax=most,
        interpolation="nearest",
        **colours,
    )


def _mark(axis: Any, picture: np.ndarray, query: tuple[float, float], colour: str) -> None:
    height, width = picture.shape[:2]
    place = query[1] * width - 0.5, query[0] * height - 0.5
    axis.plot(*place, "+", color="black", markersize=11, markeredgewidth=3.5)
    axis.plot(*place, "+", color=colour, markersize=10, markeredgewidth=2)
