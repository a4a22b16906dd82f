"""All of the analysis of a model at once."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from acmix.analysis.attention import AttentionMaps, attention_maps
from acmix.analysis.costs import StageCosts, stage_costs
from acmix.analysis.curves import Curves
from acmix.analysis.paths import PathMaps, path_maps
from acmix.analysis.rates import MixingRates, mixing_rates
from acmix.analysis.receptive_field import contributing_side, effective_receptive_field
from acmix.checks import require

# As (row, column) in shares of the image.
QUERIES = ((0.5, 0.5), (0.3, 0.3), (0.7, 0.6))
# Shares of the receptive field whose squares are given.
SHARES = (0.5, 0.9)


@dataclass
class View:
    """An image, and what the layers do on it.

    Attributes:
        name: Of the image.
        picture: As the model sees it, (H, W, 3) uint8, RGB.
        attention: Of the chosen layers.
        paths: The same.
    """

    name: str
    picture: np.ndarray
    attention: list[AttentionMaps]
    paths: list[PathMaps]


@dataclass
class Analysis:
    """What was found.

    Attributes:
        rates: Alpha and beta of every layer.
        views: A view for each image that has a picture.
        field: Effective receptive field over all images, (H, W).
        images: How many those are.
        costs: Of every stage.
        input_size: (C, H, W) that multiply-adds are for.
        curves: Of the training, if there is a log.
    """

    rates: list[MixingRates]
    views: list[View]
    field: Tensor
    images: int
    costs: list[StageCosts]
    input_size: tuple[int, ...]
    curves: Curves | None = None

    @property
    def sides(self) -> dict[float, int]:
        """Side of the square that holds a share of the receptive field, by the share."""
        return {share: contributing_side(self.field, share) for share in SHARES}

    def record(self) -> dict[str, Any]:
        """The numbers as JSON values; maps as their summaries."""
        return {
            "rates": [
                {"layer": r.layer, "alpha": r.alpha, "beta": r.beta, "log_ratio": _finite(r)}
                for r in self.rates
            ],
            "images": [_record_of(view) for view in self.views],
            "receptive_field": {
                "size": list(self.field.shape),
                "images": self.images,
                "sides": {str(share): side for share, side in self.sides.items()},
            },
            "costs": {
                "input_size": list(self.input_size),
                "stages": [
                    {
                        "stage": c.stage,
                        "parameters": dict(c.parameters),
                        "multiply_adds": dict(c.multiply_adds),
                    }
                    for c in self.costs
                ],
            },
            "curves": None if self.curves is None else asdict(self.curves),
        }


def analyze(
    model: nn.Module,
    images: Tensor,
    pictures: Sequence[tuple[str, np.ndarray]],
    *,
    queries: Sequence[tuple[float, float]] = QUERIES,
    layers: Sequence[str] | None = None,
    curves: Curves | None = None,
) -> Analysis:
    """All of it: rates, costs, the receptive field over all images, and maps on the first ones.

    Args:
        model: Takes one tensor; its mode is put back.
        images: (B, C, H, W), as the model takes them.
        pictures: Name and picture, (H, W, 3) uint8 in RGB, of the first images, which are shown.
        queries: Positions of queries, (row, column) in shares of height and width.
        layers: Names of the layers that are shown; the last one of every stage if ``None``.
        curves: Of the training, as ``read_curves`` gives them.

    Raises:
        InputError: The model has no ACmix layer or none of a name, or a position is outside.
    """
    fits = 0 < len(images) >= len(pictures)
    require(fits, "images", len(images), f"give at least as many as pictures, {len(pictures)}")
    rates, size = mixing_rates(model), tuple(images.shape[1:])
    field = effective_receptive_field(model, images)
    remedy = "the model has none on them; give images in the range that it was trained with"
    require(bool(field.isfinite().all()), "images", "no finite gradient", remedy)
    views = [
        View(
            name,
            picture,
            attention_maps(model, image, queries, layers),
            path_maps(model, image, layers),
        )
        for (name, picture), image in zip(pictures, images.split(1), strict=False)
    ]
    return Analysis(rates, views, field, len(images), stage_costs(model, size), size, curves)


def _finite(rates: MixingRates) -> float | None:
    return rates.log_ratio if math.isfinite(rates.log_ratio) else None


def _record_of(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "size": list(view.picture.shape[:2]),
        "attention": [
            {
                "layer": found.layer,
                "queries": found.queries,
                "map_size": list(found.weights.shape[2:]),
                "largest": found.weights.amax((2, 3)).tolist(),
                "elsewhere": found.elsewhere.tolist(),
                "mean_over_channels": found.per_channel,
            }
            for found in view.attention
        ],
        "paths": [
            {"layer": found.layer, "attention_share": found.attention_share} for found in view.paths
        ],
    }
