"""The model tables of the READMEs, made from each project's metafile.yml.

``python ci/tables.py`` fails when a table differs from the metafiles or a metafile names a config
that is not there; ``--write`` writes the tables.
"""

import argparse
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = ("resnet", "san", "pvt", "swin")
# A table for each section of a metafile.
HEADS = {
    "Models": "| model | parameters: counted / paper | multiply-adds (G): counted / paper "
    "| top-1 (%): paper | trained here | config |\n|---|---|---|---|---|---|",
    "Downstream": "| model | parameters: counted / paper | multiply-adds (G): counted / paper "
    "| score: paper | trained here | config |\n|---|---|---|---|---|---|",
}


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


def render(section: str, projects: tuple[str, ...], prefix: bool) -> str:
    """The table of these projects; with ``prefix`` links start at the repository's root."""
    rows = [HEADS[section]]
    for project in projects:
        folder = f"{project}/" if prefix else ""
        rows += [_row(entry, folder) for entry in read_section(project, section)]
    return "\n".join(rows)


def _row(entry: dict, folder: str) -> str:
    counted, paper = entry["Metadata"], entry["Paper"]
    size = "at {}×{} ".format(*counted["Size"]) if "Size" in counted else ""
    cells = [
        entry["Name"],
        f"{counted['Parameters']:,} / {paper.get('Parameters', 'not given')}",
        f"{size}{counted['FLOPs'] / 1e9:.{1 if size else 2}f} / {paper['FLOPs']}",
        _score(entry),
        "not trained here" + _weights(entry),
        f"[config]({folder}{entry['Config']})",
    ]
    return f"| {' | '.join(cells)} |"


def _score(entry: dict) -> str:
    if "Data" not in entry:
        return str(entry["Paper"]["Top 1 Accuracy"])
    metric = "box mAP" if entry["Data"] == "COCO" else "mIoU"
    return f"{entry['Data']} {metric} {entry['Paper'][metric]}"


def _weights(entry: dict) -> str:
    if "Released Weights" not in entry:
        return ""
    return "; released weights load" if entry["Released Weights"] else "; no weights exist"


def replace_table(text: str, section: str, table: str, name: str) -> str:
    """The text with the table between the marks of its section.

    Raises:
        SystemExit: The text has no marks.
    """
    begin = f"<!-- {section.lower()}: made from metafile.yml by `make tables` -->"
    end = f"<!-- /{section.lower()} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"error: {name}: needs one '{begin}' and one '{end}'")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    """Check the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables")
    write = parser.parse_args().write
    readmes = {ROOT / "README.md": PROJECTS}
    readmes |= {ROOT / project / "README.md": (project,) for project in PROJECTS}
    stale = []
    for path, projects in readmes.items():
        old = new = path.read_text()
        for section in HEADS:
            table = render(section, projects, prefix=projects is PROJECTS)
            new = replace_table(new, section, table, str(path.relative_to(ROOT)))
        if write:
            path.write_text(new)
        elif new != old:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        sys.exit(f"error: tables differ from metafile.yml in {', '.join(stale)}; run 'make tables'")


if __name__ == "__main__":
    main()
