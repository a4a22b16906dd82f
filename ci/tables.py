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
BEGIN = "<!-- models: made from metafile.yml by `make tables` -->"
END = "<!-- /models -->"
HEAD = (
    "| model | parameters: counted / paper | multiply-adds (G): counted / paper "
    "| top-1 (%): paper | trained here | config |\n|---|---|---|---|---|---|"
)


def read_models(project: str) -> list[dict]:
    """The models of a project's metafile.

    Raises:
        SystemExit: A config that the metafile names is not there.
    """
    models = yaml.safe_load((ROOT / project / "metafile.yml").read_text())["Models"]
    for model in models:
        if not (ROOT / project / model["Config"]).is_file():
            sys.exit(f"error: {project}/metafile.yml: config {model['Config']} not found")
    return models


def render(projects: tuple[str, ...], prefix: bool) -> str:
    """The table of these projects; with ``prefix`` links start at the repository's root."""
    rows = [HEAD]
    for project in projects:
        rows += [_row(model, f"{project}/" if prefix else "") for model in read_models(project)]
    return "\n".join(rows)


def _row(model: dict, folder: str) -> str:
    counted, paper = model["Metadata"], model["Paper"]
    weights = "released weights load" if model["Released Weights"] else "no weights exist"
    cells = [
        model["Name"],
        f"{counted['Parameters']:,} / {paper['Parameters']}",
        f"{counted['FLOPs'] / 1e9:.2f} / {paper['FLOPs']}",
        str(paper["Top 1 Accuracy"]),
        f"not trained here; {weights}",
        f"[config]({folder}{model['Config']})",
    ]
    return f"| {' | '.join(cells)} |"


def replace_table(text: str, table: str, name: str) -> str:
    """The text with the table between its marks.

    Raises:
        SystemExit: The text has no marks.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"error: {name}: needs one '{BEGIN}' and one '{END}'")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Check the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables")
    write = parser.parse_args().write
    tables = {ROOT / "README.md": render(PROJECTS, prefix=True)}
    tables |= {ROOT / p / "README.md": render((p,), prefix=False) for p in PROJECTS}
    stale = []
    for path, table in tables.items():
        old = path.read_text()
        new = replace_table(old, table, str(path.relative_to(ROOT)))
        if write:
            path.write_text(new)
        elif new != old:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        sys.exit(f"error: tables differ from metafile.yml in {', '.join(stale)}; run 'make tables'")


if __name__ == "__main__":
    main()
