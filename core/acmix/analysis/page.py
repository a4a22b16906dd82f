"""One HTML page with all figures and tables in it, which opens anywhere without a network."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

_FIGURES = """\
.figures {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr));
}
figure {
  margin: 0; padding: 0.5rem; background: #fff;
  border: 1px solid #d6d3d1; border-radius: 0.4rem;
}
figure img { display: block; width: 100%; height: auto; }
/* On white, whatever the page around it says. */
.figures figcaption { color: #44403c !important; font-size: 0.9rem; padding: 0.25rem; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --text: #1c1917; --back: #fafaf9; --line: #d6d3d1; --soft: #57534e;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #f5f5f4; --back: #1c1917; --line: #57534e; --soft: #d6d3d1; }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; padding: 1rem; max-width: 70rem; overflow-wrap: anywhere;
  color: var(--text); background: var(--back); font: 1rem/1.5 system-ui, sans-serif;
}}
h1 {{ font-size: 1.6rem; line-height: 1.2; }}
h2 {{
  margin: 2.5rem 0 0.5rem; padding-top: 1rem; font-size: 1.25rem;
  border-top: 1px solid var(--line);
}}
p {{ max-width: 45rem; }}
{figures}.table {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{
  padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; white-space: nowrap;
}}
th:first-child, td:first-child {{ text-align: left; }}
summary {{ cursor: pointer; color: var(--soft); margin-top: 0.75rem; }}
footer {{ margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<footer>{footer}</footer>
</body>
</html>
"""


@dataclass
class Table:
    """Rows of text, the first column left-aligned.

    Attributes:
        title: What is behind the fold; the table is shown at once if it is empty.
        head: Names of the columns.
        rows: A cell for each column.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: A paragraph.
        figures: SVG files, each with its caption.
        tables: Tables below them.
    """

    title: str
    text: str
    figures: list[tuple[str, bytes]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def html_page(title: str, lines: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """The page; all texts are escaped.

    Args:
        title: Its heading.
        lines: Paragraphs below it.
        sections: The rest.
        footer: The last line.
    """
    parts = [f"<p>{escape(line)}</p>" for line in lines] + [_section(s) for s in sections]
    return _PAGE.format(
        title=escape(title), body="\n".join(parts), figures=_FIGURES, footer=escape(footer)
    )


def figures_html(figures: Iterable[tuple[str, bytes, str]]) -> str:
    """Figures in a grid that fits any width, for a page that has a style of its own.

    Args:
        figures: Caption, file and its kind, ``svg+xml`` or ``png``.
    """
    return f"<style>{_FIGURES}</style>{_grid(figures)}"


def _section(section: Section) -> str:
    figures = _grid((caption, svg, "svg+xml") for caption, svg in section.figures)
    return (
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
        f"{figures}{''.join(map(_table, section.tables))}</section>"
    )


def _grid(figures: Iterable[tuple[str, bytes, str]]) -> str:
    return f'<div class="figures">{"".join(_figure(*figure) for figure in figures)}</div>'


def _figure(caption: str, file: bytes, kind: str) -> str:
    data, text = b64encode(file).decode(), escape(caption, quote=True)
    image = f'<img alt="{text}" src="data:image/{kind};base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    html = f'<div class="table"><table><tr>{head}</tr>{rows}</table></div>'
    if not table.title:
        return html
    return f"<details><summary>{escape(table.title)}</summary>{html}</details>"
