"""The folder with all of an analysis: figures, numbers, and a page that shows them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from acmix.analysis import plots
from acmix.analysis.costs import PARTS
from acmix.analysis.drawing import Figure, as_png, as_svg
from acmix.analysis.page import Section, Table, html_page
from acmix.analysis.summary import Analysis

_FOOTER = "Made by acmix.analysis. The same figures and numbers are in files beside this page."
_VECTOR = (
    " This model's attention is a vector: a weight for each channel, of any sign where it is"
    " patchwise. Shown is the mean over channels; red adds, blue takes away."
)


def write_report(
    analysis: Analysis, folder: str | Path, title: str = "ACmix", lines: Sequence[str] = ()
) -> list[Path]:
    """Write figures as PNG and SVG, ``analysis.json``, and ``report.html`` that holds them all.

    Args:
        analysis: What ``analyze`` gave.
        folder: Where; it is made.
        title: Heading of the page.
        lines: Paragraphs below it.

    Returns:
        The files.

    Raises:
        InputError: matplotlib is not installed.
    """
    figures = _figures(analysis)
    vector = {name: as_svg(figure) for name, figure in figures.items()}
    files = {f"{name}.svg": data for name, data in vector.items()}
    files |= {f"{name}.png": as_png(figure) for name, figure in figures.items()}
    files["analysis.json"] = (json.dumps(analysis.record(), indent=1) + "\n").encode()
    sections = _sections(analysis, vector)
    files["report.html"] = html_page(title, lines, sections, _FOOTER).encode()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def _figures(analysis: Analysis) -> dict[str, Figure]:
    figures = {"rates": plots.rates_figure(analysis.rates)}
    for number, view in enumerate(analysis.views, 1):
        if view.attention:
            attention = plots.attention_figure(view.picture, view.attention)
            figures[f"attention-{number}"] = attention
        figures[f"paths-{number}"] = plots.paths_figure(view.picture, view.paths)
    figures["receptive-field"] = plots.field_figure(analysis.field, analysis.sides)
    figures["costs"] = plots.costs_figure(analysis.costs)
    if analysis.curves is not None:
        figures["curves"] = plots.curves_figure(analysis.curves)
    return figures


def _sections(analysis: Analysis, figures: Mapping[str, bytes]) -> list[Section]:
    numbered = list(enumerate((view.name for view in analysis.views), 1))

    def of_images(kind: str) -> list[tuple[str, bytes]]:
        names = ((f"{kind}-{number}", name) for number, name in numbered)
        return [(image, figures[name]) for name, image in names if name in figures]

    sections = [
        _rates(analysis, figures["rates"]),
        Section("Where queries look", _attention_text(analysis), of_images("attention")),
        Section(
            "What each path adds",
            "The norm over channels of α·F_att and β·F_conv, whose sum is the output of a layer."
            " Both maps of a layer have one scale.",
            of_images("paths"),
            [_shares(analysis)] if analysis.views else [],
        ),
        _field(analysis, figures["receptive-field"]),
        _costs(analysis, figures["costs"]),
    ]
    if "curves" in figures:
        text = "From the log of the run that wrote the checkpoint."
        sections.append(Section("Training", text, [("Training curves", figures["curves"])]))
    return [section for section in sections if section.figures]


def _rates(analysis: Analysis, figure: bytes) -> Section:
    rows = [
        (r.layer, f"{r.alpha:.3f}", f"{r.beta:.3f}", f"{r.log_ratio:+.2f}") for r in analysis.rates
    ]
    return Section(
        "How the layers weigh their paths",
        "The output of a layer is α·F_att + β·F_conv. Above zero, log|α/β| says that attention has"
        " the larger rate. Rates alone don't say how large the paths are: see what each path adds.",
        [("|α|, |β| and log|α/β| of every layer, as in the paper's Figure 5", figure)],
        [Table("All values", ("layer", "α", "β", "log|α/β|"), rows)],
    )


def _attention_text(analysis: Analysis) -> str:
    vector = any(found.per_channel for view in analysis.views for found in view.attention)
    return (
        "Attention weights of a query, the cross, over the image: the mean over the heads, each"
        " picture on a scale of its own. A row for each layer, a column for each query, which sits"
        " in the middle of a pixel of the layer's map." + (_VECTOR if vector else "")
    )


def _shares(analysis: Analysis) -> Table:
    head = ("layer", *(view.name for view in analysis.views))
    layers = (found.layer for found in analysis.views[0].paths)
    rows = [
        (layer, *(f"{view.paths[i].attention_share:.0%}" for view in analysis.views))
        for i, layer in enumerate(layers)
    ]
    return Table("Share of the attention path in the sum of both norms", head, rows)


def _field(analysis: Analysis, figure: bytes) -> Section:
    sides = " and ".join(f"{share:.0%} within {side} px" for share, side in analysis.sides.items())
    height, width = analysis.field.shape
    count = "one image" if analysis.images == 1 else f"{analysis.images} images"
    return Section(
        "What the last map sees",
        "Effective receptive field: how strongly each pixel of the image moves the centre of the"
        f" last map, by the gradient, the mean over {count}. Squares around the centre hold {sides}"
        f" of {height}×{width}.",
        [("Effective receptive field", figure)],
    )


def _costs(analysis: Analysis, figure: bytes) -> Section:
    tables = []
    for title, of in (
        ("Parameters", lambda c: c.parameters),
        ("Multiply-adds", lambda c: c.multiply_adds),
    ):
        rows = [
            (c.stage, *(f"{of(c)[part]:,}" for part in PARTS), f"{sum(of(c).values()):,}")
            for c in analysis.costs
        ]
        total = [sum(of(c)[part] for c in analysis.costs) for part in PARTS]
        rows.append(("all", *(f"{n:,}" for n in total), f"{sum(total):,}"))
        tables.append(Table(title, ("stage", *PARTS, "sum"), rows))
    size = "×".join(map(str, analysis.input_size[1:]))
    return Section(
        "What it costs",
        "Projections are shared by both paths, the paper's first stage; attention and convolution"
        f" are what each path needs besides (its Table 1). Multiply-adds are for {size} pixels.",
        [("Parameters and multiply-adds of every stage", figure)],
        tables,
    )
