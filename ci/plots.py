"""The plot of the pages: ratios of the models to their plain twins, as SVG.

It is text that depends on the figures alone, so that ``make check-tables`` can compare it.
"""

import math

WIDTH, LEFT, RIGHT, BAR, GAP = 764, 190, 84, 18, 8
STYLE = """<style>
text { font: 16px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; \
fill: #1d2733; }
.b { font-weight: 600; font-size: 18px; paint-order: stroke; stroke: #fcfcfd; stroke-width: 6; }
.e { text-anchor: end; }
.m { text-anchor: middle; fill: #445264; }
.bar { fill: #8db4e6; }
.over { fill: #f0b07c; }
.target { stroke: #1d2733; stroke-width: 3; }
.grid { stroke: #d4dae1; }
.one { stroke: #5b6878; stroke-width: 2; }
</style>"""


def ratio_bars(rows: list[dict]) -> str:
    """Bars of the device measured last, a group for each model, with a mark at each target.

    Args:
        rows: Rows of the benchmark whose case is a model and its twin. The row of the twin has
            the target, such as ``acmix ≤ 1.05``.
    """
    device = rows[-1]["device"]
    rows = [row for row in rows if row["device"] == device]
    targets = {
        (row["case"], row["mode"]): float(row["target"].split()[-1])
        for row in rows
        if row["target"]
    }
    bars = [row for row in rows if row["side"] == "acmix"]
    values = [1.0, *targets.values(), *(float(row["ratio_to_first"]) for row in bars)]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10

    def x(value: float) -> str:
        return f"{LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT):.1f}"

    body, y, case = [], 22, None
    for row in bars:
        if row["case"] != case:
            case, y = row["case"], y + 30
            body.append(f'<text x="14" y="{y - 6}" class="b">{case}</text>')
        target = targets.get((case, row["mode"]))
        body += _bar(row, target, x, y)
        y += BAR + GAP
    height = y + 56
    ticks = [round(low + i / 10, 1) for i in range(round((high - low) * 10) + 1)]
    grid = [_tick(x(tick), tick, y) for tick in ticks]
    caption = f"time, × that of the plain network; mark: target; {device}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-labelledby="t">',
            '<title id="t">Time of each model as a ratio to its plain twin</title>',
            STYLE,
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10" fill="#fcfcfd" '
            'stroke="#d4dae1"/>',
            *grid,
            *body,
            f'<text x="{WIDTH / 2:g}" y="{height - 14}" class="m">{caption}</text>',
            "</svg>\n",
        ]
    )


def _bar(row: dict, target: float | None, x, y: int) -> list[str]:
    value = float(row["ratio_to_first"])
    mark = float(x(1.0 if target is None else target))
    left, right = (float(x(side)) for side in sorted((1.0, value)))
    kind = "over" if target is not None and value > target else "bar"
    lines = [
        f'<text x="{LEFT - 12}" y="{y + 14}" class="e">{row["mode"]}</text>',
        f'<rect x="{left}" y="{y}" width="{right - left:.1f}" height="{BAR}" class="{kind}"/>',
        f'<text x="{max(right, mark) + 8:.1f}" y="{y + 14}">{value:.2f}</text>',
    ]
    if target is not None:
        lines.append(f'<path d="M{mark} {y - 2}V{y + BAR + 2}" class="target"/>')
    return lines


def _tick(x: str, value: float, bottom: int) -> str:
    kind = "one" if value == 1 else "grid"
    return (
        f'<path d="M{x} 16V{bottom}" class="{kind}"/>'
        f'<text x="{x}" y="{bottom + 18}" class="m">{value}</text>'
    )
