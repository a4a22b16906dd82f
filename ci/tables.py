"""Tables and a plot of the pages, from the projects' metafile.yml and from measured CSVs.

``python ci/tables.py`` fails when a table differs from its source or a metafile names a config that
is not there; ``--write`` writes the tables.
"""

import argparse
import csv
import itertools
import sys
from pathlib import Path

import yaml
from plots import ratio_bars

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "core" / "ablation"))

import summary  # noqa: E402

PROJECTS = ("resnet", "san", "pvt", "swin")
# For a model that the paper does not have.
NOT_THERE = "not in the paper"
# A table for each section of a metafile.
HEADS = {
    "Models": "| model | parameters: counted / paper | multiply-adds (G): counted / paper "
    "| top-1 (%): paper | config |\n|---|---|---|---|---|",
    "Downstream": "| model | parameters: counted / paper | multiply-adds (G): counted / paper "
    "| score: paper | config |\n|---|---|---|---|---|",
}
FAMILIES = (
    "| family | models | parameters (M) | multiply-adds (G) | top-1 (%), the paper's |\n"
    "|---|---|---|---|---|"
)
RECIPE = "| setting | authors | here | why |\n|---|---|---|---|"
RATIOS = ROOT / "core/benchmarks/ratios.csv"
PLOT = ROOT / "docs/images/speed.svg"
EXPORTED = ROOT / "core/benchmarks/exported_models.csv"
ABLATION = ROOT / "core/ablation/results.csv"
NOT_MEASURED = "–"


def read_section(project: str, section: str) -> list[dict]:
    """The entries of a section of a project's metafile.

    Raises:
        SystemExit: A config that the metafile names is not there.
    """
    entries = yaml.safe_load((ROOT / project / "metafile.yml").read_text())[section]
    for entry in entries:
        if not (ROOT / project / entry["Config"]).is_file():
            sys.exit(f"error: {project}/metafile.yml: config {entry['Config']} not found")
    return entries


def render(section: str, projects: tuple[str, ...], up: str | None = None) -> str:
    """The table of these projects; ``up`` leads from the page to the repository's root."""
    rows = [HEADS[section]]
    for project in projects:
        folder = "" if up is None else f"{up}{project}/"
        rows += [_row(entry, folder) for entry in read_section(project, section)]
    return "\n".join(rows)


def render_families() -> str:
    """A row for each project, with links to the configs of its ImageNet models."""
    rows = [FAMILIES]
    for project in PROJECTS:
        entries = read_section(project, "Models")
        family = entries[0]["In Collection"]
        cells = [
            [f"[{e['Name'].removeprefix(family)[1:]}]({project}/{e['Config']})" for e in entries],
            [f"{e['Metadata']['Parameters'] / 1e6:.1f}" for e in entries],
            [f"{e['Metadata']['FLOPs'] / 1e9:.1f}" for e in entries],
            [str(e["Paper"]["Top 1 Accuracy"]) if "Paper" in e else NOT_MEASURED for e in entries],
        ]
        columns = " | ".join(", ".join(cell) for cell in cells)
        rows.append(f"| [{family}]({project}/README.md) | {columns} |")
    return "\n".join(rows)


def _row(entry: dict, folder: str) -> str:
    counted, paper = entry["Metadata"], entry.get("Paper")
    given = {"FLOPs": NOT_THERE, "Parameters": NOT_THERE} if paper is None else paper
    size = "at {}×{} ".format(*counted["Size"]) if "Size" in counted else ""
    cells = [
        entry["Name"],
        f"{counted['Parameters']:,} / {given.get('Parameters', 'not given')}",
        f"{size}{counted['FLOPs'] / 1e9:.{1 if size else 2}f} / {given['FLOPs']}",
        _score(entry),
        f"[config]({folder}{entry['Config']})",
    ]
    return f"| {' | '.join(cells)} |"


def _score(entry: dict) -> str:
    if "Data" not in entry:
        return str(entry["Paper"]["Top 1 Accuracy"]) if "Paper" in entry else NOT_THERE
    metric = "box mAP" if entry["Data"] == "COCO" else "mIoU"
    return f"{entry['Data']} {metric} {entry['Paper'][metric]}"


def render_recipe(project: str) -> str:
    """Where a project's ImageNet recipe differs from the authors'."""
    rows = yaml.safe_load((ROOT / project / "metafile.yml").read_text())["Recipe"]
    keys = ("Setting", "Authors", "Here", "Why")
    return "\n".join([RECIPE, *(f"| {' | '.join(row[key] for key in keys)} |" for row in rows)])


def render_ratios() -> str:
    """Times of the models as ratios to those of their plain twins, a row a model and device."""
    rows = [row for row in _read_csv(RATIOS) if " / " in row["case"]]
    ways = list(dict.fromkeys(row["mode"] for row in rows))
    lines = [f"| model / plain twin | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    devices = list(dict.fromkeys(row["device"] for row in rows))
    for device, case in dict.fromkeys((row["device"], row["case"]) for row in rows):
        of_case = [row for row in rows if (row["device"], row["case"]) == (device, case)]
        cells = [_ratios([row for row in of_case if row["mode"] == way]) for way in ways]
        mark = f" ({devices.index(device) + 1})" if len(devices) > 1 else ""
        lines.append(f"| {case}{mark} | {' | '.join(cells)} |")
    named = (f"({i}) {device}" for i, device in enumerate(devices, start=1))
    return "\n".join([*lines, "", f"Measured on {', '.join(named if devices[1:] else devices)}."])


def _ratios(rows: list[dict]) -> str:
    """The ratio of the model, and behind it that of its deploy form."""
    found = {row["side"]: f"{float(row['ratio_to_first']):.2f}" for row in rows}
    return " / ".join(found[side] for side in ("acmix", "deployed") if side in found) or "–"


def render_speed() -> str:
    """All rows of the benchmark, one for each case and mode, and the machines that they are of."""
    rows, lines = _read_csv(RATIOS), []
    for device in dict.fromkeys(row["device"] for row in rows):
        lines += [f"### {device}", "", "| case | mode | medians, × the first | target |"]
        lines.append("|---|---|---|---|")
        of_device = (row for row in rows if row["device"] == device)
        for (case, mode), group in itertools.groupby(of_device, lambda r: (r["case"], r["mode"])):
            first, *others = group
            sides = [_side(first), *(f"{_side(row)} (×{row['ratio_to_first']})" for row in others)]
            lines.append(f"| {case} | {mode} | {', '.join(sides)} | {first['target'] or '–'} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _side(row: dict) -> str:
    median, unit = float(row["median"]), row["unit"]
    if unit == "s":
        median, unit = 1e3 * median, "ms"
    figure = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
    return f"{row['side']} {figure} {unit}"


def render_exports() -> str:
    """The ONNX files of the ImageNet models, and what they take next to eager mode."""
    lines = [
        "| model | nodes | MiB | largest error: onnxruntime, OpenVINO | eager, ms "
        "| onnxruntime | OpenVINO |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = _read_csv(EXPORTED)
    for row in rows:
        ratios = (f"×{row[f'{side} ratio']}" for side in ("onnxruntime", "OpenVINO"))
        cells = [
            *(row["model"], row["nodes"], row["MiB"]),
            f"{row['error']}, {row['OpenVINO error'] or NOT_MEASURED}",
            *([row["eager ms"], *ratios] if row["eager ms"] else [NOT_MEASURED] * 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    devices = dict.fromkeys(row["device"] for row in rows if row["device"])
    return "\n".join([*lines, *("", f"Times of {'; '.join(devices)}.") * bool(devices)])


def _read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def replace_table(text: str, section: str, source: str, table: str, name: str) -> str:
    """The text with the table between the marks of its section.

    Raises:
        SystemExit: The text has no marks.
    """
    begin = f"<!-- {section.lower()}: made from {source} by `make tables` -->"
    end = f"<!-- /{section.lower()} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"error: {name}: needs one '{begin}' and one '{end}'")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    """Check the tables and the plot, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables")
    write = parser.parse_args().write
    stale = []
    for path, new in _pages().items():
        name, old = str(path.relative_to(ROOT)), path.read_text() if path.exists() else None
        if write:
            path.write_text(new)
        elif new != old:
            stale.append(name)
    if stale:
        sys.exit(f"error: {', '.join(stale)}: not what the sources say; run 'make tables'")


def _pages() -> dict[Path, str]:
    """Text of every page that has a table, and of the plot."""
    pages = {PLOT: ratio_bars([row for row in _read_csv(RATIOS) if " / " in row["case"]])}
    for path, tables in _tables().items():
        pages[path] = path.read_text()
        for section, source, table in tables:
            name = str(path.relative_to(ROOT))
            pages[path] = replace_table(pages[path], section, source, table, name)
    return pages


def _tables() -> dict[Path, list[tuple[str, str, str]]]:
    """Section, source and table of every table of each page."""
    metafile = "metafile.yml"
    tables = {ROOT / "README.md": [("Families", metafile, render_families())]}
    for project in PROJECTS:
        tables[ROOT / project / "README.md"] = [
            *((section, metafile, render(section, (project,))) for section in HEADS),
            ("Recipe", metafile, render_recipe(project)),
        ]
    downstream = ("Downstream", metafile, render("Downstream", PROJECTS, up="../../"))
    tables[ROOT / "docs/train/detection-segmentation.md"] = [downstream]
    ratios = str(RATIOS.relative_to(ROOT))
    tables[ROOT / "docs/speed.md"] = [
        ("Ratios", ratios, render_ratios()),
        ("Speed", ratios, render_speed()),
    ]
    exports = ("Exports", str(EXPORTED.relative_to(ROOT)), render_exports())
    tables[ROOT / "docs/your-network/export.md"] = [exports]
    ablation = str(ABLATION.relative_to(ROOT))
    tables[ROOT / "docs/ablation.md"] = [
        ("Ablation", ablation, summary.render(_read_csv(ABLATION)))
    ]
    return tables


if __name__ == "__main__":
    main()
