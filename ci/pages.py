"""What the site has besides ``docs/``: pages of the repository, and links that lead to them.

MkDocs calls these functions (``hooks`` in ``mkdocs.yml``). The root's README is the home page. Any
other file outside ``docs/`` that a page links to is a page under ``repository/``: Markdown as it
is, sources as code, a folder as the list of its files.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository/"
LANGUAGES = {".py": "python", ".csv": "text", ".yaml": "yaml", ".yml": "yaml"}
# Targets of Markdown links and of images in HTML.
LINK = re.compile(r"""(\]\(|<img src=")([^)"\s]+)(?=[)"])""")

# What a browser would fetch from elsewhere; the theme fetches what draws a diagram of mermaid.
FETCHED = re.compile(
    r"""<(script|img|iframe)[^>]* src="http|<link[^>]* href="http|class="mermaid"""
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the README and all that is linked to, from page to page; MkDocs names what is missing."""
    todo = [f"docs/{uri}" for uri in files.src_uris if uri.endswith(".md")] + ["README.md"]
    seen = set(todo)
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    while todo:
        path = todo.pop()
        inside = path.startswith("docs/")
        if not (ROOT / path).exists() or (inside and not path.endswith(".md")):
            continue
        text = content(path)
        found = {target for _, target in targets(path, text)}
        todo += sorted(found - seen)
        seen |= found
        if not inside and path != "README.md":
            kind = InclusionLevel.UNDEFINED if path.endswith(".md") else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, place(path), content=text, inclusion=kind))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_) -> str:
    """Links of a page as those of the site."""
    uri = page.file.src_uri
    found = dict(targets(source(uri), markdown))

    def moved(match: re.Match) -> str:
        before, link = match.groups()
        if link in found:
            _, mark, anchor = link.partition("#")
            link = os.path.relpath(place(found[link]), PurePosixPath(uri).parent) + mark + anchor
        return before + link

    return LINK.sub(moved, markdown)


def on_post_page(output: str, *, page: Page, **_) -> str:
    """The page as it is.

    Raises:
        PluginError: It needs the network to be read.
    """
    if fetched := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} needs the network: {fetched[0]}")
    return output


def targets(path: str, markdown: str) -> list[tuple[str, str]]:
    """Links to files of the repository, each with the file's path in it."""
    if not path.endswith(".md") and not (ROOT / path).is_dir():
        return []
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    links = dict.fromkeys(link for _, link in LINK.findall(prose))
    inside = [link for link in links if "://" not in link and not link.startswith("#")]
    folder = PurePosixPath(path).parent
    return [(link, os.path.normpath(folder / link.split("#")[0])) for link in inside]


def place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return OUTSIDE + (path if path.endswith(".md") else f"{path}.md")


def source(uri: str) -> str:
    """The file of the repository that is at a place of the site."""
    if uri == "index.md":
        return "README.md"
    if not uri.startswith(OUTSIDE):
        return f"docs/{uri}"
    path = uri.removeprefix(OUTSIDE)
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def content(path: str) -> str:
    """A page of a file or folder; what is no Markdown is left out of the search."""
    there = ROOT / path
    if path.endswith(".md"):
        return there.read_text()
    if there.is_dir():
        names = sorted(file.name for file in there.iterdir() if file.is_file())
        body = "\n".join(f"- [{name}]({there.name}/{name})" for name in names)
    else:
        body = f"````{LANGUAGES.get(there.suffix, 'text')}\n{there.read_text()}\n````"
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n{body}\n"
