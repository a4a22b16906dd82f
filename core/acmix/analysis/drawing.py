"""How figures are made and written; they need matplotlib, which nothing else here does.

All are of one width, so that they can be read on a phone too.
"""

import functools
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from acmix.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

WIDTH = 5.0  # inches
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "legend.columnspacing": 1.0,
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.4,
    "figure.constrained_layout.h_pad": 0.07,
    "axes.spines.right": False,
    "svg.hashsalt": "acmix",
    "savefig.facecolor": "white",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with our settings, whatever the user's are.

    Raises:
        InputError: matplotlib is not installed.
    """

    @functools.wraps(draw)
    def call(*args: Any, **kwargs: Any) -> Figure:
        try:
            import matplotlib
        except ImportError as error:
            raise InputError("figures need matplotlib; pip install matplotlib") from error
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            # Found once for all formats; ticks change with the first pass, and labels with them.
            figure.draw_without_rendering()
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return call


def empty_figure(height: float) -> Figure:
    """A figure of a height in inches."""
    from matplotlib import figure

    return figure.Figure(figsize=(WIDTH, height), layout="constrained")


def grid(rows: int, columns: int, picture: np.ndarray) -> tuple[Figure, Any]:
    """Empty pictures of the shape of one, and their axes, (rows, columns)."""
    height, width = picture.shape[:2]
    side = min(WIDTH / max(columns, 2), 1.9)
    figure = empty_figure(rows * (side * height / width + 0.35))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure, axes


def as_svg(figure: Figure) -> bytes:
    """The figure as an SVG file."""
    return _written(figure, format="svg", metadata={"Date": None})


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return _written(figure, format="png", dpi=160)


def _written(figure: Figure, **options: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()
