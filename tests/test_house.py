"""The house: imports go down only and in no circle, files are short, an operator has one name."""

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

from support import ROOT

# From the ground up; a module may import from its own floor and those below.
FLOORS = (
    ("acmix.errors", "acmix.suggest", "acmix.tracing"),
    ("acmix.checks", "acmix.fx", "acmix.geometry", "acmix.layout", "acmix.mixing"),
    ("acmix.ops", "acmix.reference"),
    ("acmix.backends",),
    ("acmix.arguments", "acmix.functional"),
    ("acmix.modules",),
    ("acmix.digests", "acmix.reading_cost", "acmix.safetensors_files"),
    ("acmix.checkpoint", "acmix.complexity", "acmix.report", "acmix.warm_start"),
    ("acmix.analysis", "acmix.deploy", "acmix.dropin", "acmix.detection", "acmix.integrations"),
    ("acmix",),
    ("acmix.info", "acmix.mm"),
    ("acmix.convert",),
    ("acmix.commands",),
    ("acmix_pvt", "acmix_resnet", "acmix_san", "acmix_swin"),
    ("tools",),
)
PROJECTS = ("resnet", "san", "pvt", "swin")
STEMS = ("attention", "aggregation", "difference", "convolution", "mixing", "paths", "windows")
LINES = 500


def sources() -> dict[str, Path]:
    """Every Python file of the packages and tools, by module."""
    found = {}
    for root in ("core", *PROJECTS):
        for path in sorted((ROOT / root).glob("acmix*/**/*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    for project in PROJECTS:
        for path in sorted((ROOT / project / "tools").glob("*.py")):
            found[f"tools.{project}.{path.stem}"] = path
    return found


SOURCES = sources()


def imports(module: str) -> set[str]:
    """Names that a module imports, wherever it does: a submodule rather than its package."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                names.add(below if below in SOURCES else node.module)
    return names


def floor(module: str) -> int:
    """Number of the floor of a module: the one that names it most exactly."""
    matches = [
        (len(name), number)
        for number, names in enumerate(FLOORS)
        for name in names
        if module == name or (name != "acmix" and module.startswith(f"{name}."))
    ]
    assert matches, f"{module} is on no floor: put it on one in FLOORS"
    return max(matches)[1]


GRAPH = {
    module: {name for name in imports(module) if name in SOURCES and name != module}
    for module in SOURCES
}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module):
    upward = {name for name in GRAPH[module] if floor(name) > floor(module)}
    assert not upward


def test_the_figure_draws_the_floors_in_their_order():
    figure = (ROOT / "docs/images/floors.svg").read_text()
    drawn = [floor(name) for name in re.findall(r"\bacmix[._]\w+", figure)]
    assert drawn == sorted(drawn, reverse=True)
    assert len(set(drawn)) >= 10


def test_there_is_no_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_operators_import_no_backend():
    reached, todo = set(), ["acmix.ops"]
    while todo:
        module = todo.pop()
        reached.add(module)
        todo += GRAPH[module] - reached
    assert not [name for name in reached if name.startswith("acmix.backends")]


def test_no_backend_imports_another():
    for module, names in GRAPH.items():
        backend = re.match(r"acmix\.backends\.(torch|cpu|cuda|reference)\b", module)
        for name in names if backend else ():
            other = re.match(r"acmix\.backends\.(torch|cpu|cuda|reference)\b", name)
            assert other is None or other[1] == backend[1], f"{module} imports {name}"


def test_core_needs_torch_alone():
    allowed = {"acmix", "torch", "numpy", *sys.stdlib_module_names}
    optional = re.compile(r"acmix\.(mm|integrations)\b|acmix\.detection$|acmix_|tools\.")
    for module in SOURCES:
        if optional.match(module):
            continue
        tree = ast.parse(SOURCES[module].read_text())
        # What a function imports is asked for at first use.
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= allowed, module


def kernels_and_sources() -> list[Path]:
    return [*SOURCES.values(), *sorted((ROOT / "core/acmix/csrc").glob("*/*.*"))]


@pytest.mark.parametrize("path", kernels_and_sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("stem", STEMS)
def test_an_operator_has_one_name(stem):
    places = ["ops/{}.py"]
    # The joint operators call the kernels of the other two.
    if stem == "paths":
        places += ["backends/cuda/{}.py"]
    elif stem == "mixing":
        places += ["backends/cpu/{}.py"]
    else:
        places += ["backends/cpu/{}.py", "csrc/cpu/{}.cpp"]
    if stem in ("attention", "aggregation", "difference"):
        places += ["backends/cuda/{}.py", "csrc/cuda/{}.cu", "backends/torch/{}.py"]
    for place in places:
        assert (ROOT / "core/acmix" / place.format(stem)).is_file()


def test_no_operator_has_a_second_name():
    for path in kernels_and_sources():
        assert "subtract" not in path.read_text().lower(), path
