"""What the pages tell users to type: snippets run, commands name what exists."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS, DefaultScope
from mmpretrain.registry import MODELS

from acmix import commands
from acmix.mm import checks, parsers, settings
from acmix.mm.projects import project_folder
from forks import run_python
from support import ROOT

PACKAGES = ("acmix", "acmix_resnet", "acmix_san", "acmix_pvt", "acmix_swin")
# What a page about it may ask for.
OPTIONAL = ("timm", "lightning", "huggingface_hub", "peft", "torchao", "ultralytics")
# What make may be given.
SETTINGS = {
    *("CONFIG", "CHECKPOINT", "DATA_ROOT", "ARGS", "OUT", "IMAGES"),
    *("GPUS", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MAX_RESTARTS"),
}
HOMES = [ROOT / name for name in ("", "core", "resnet", "san", "pvt", "swin")]
PAGES = [page for folder in HOMES for page in sorted(folder.glob("*.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Blocks of other languages are run by a test of their own, or are no code.
RUN, NOT_RUN = {"python", "bash"}, {"py", "text", "yaml", "sh", "bibtex"}


def blocks(language):
    """Code of a language in every page, with the output shown in a text block right after it."""
    fence = re.compile(rf"```{language}\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
    found = []
    for path in PAGES:
        for number, (body, output) in enumerate(fence.findall(path.read_text())):
            name = f"{path.relative_to(ROOT).with_suffix('')}-{number}"
            found.append(pytest.param(path, body, output, id=name))
    return found


def typed_commands():
    found = []
    for parameter in blocks("bash"):
        path, body, _ = parameter.values
        folder = ROOT if ROOT / "docs" in path.parents else path.parent
        for line in body.strip().splitlines():
            words = shlex.split(line, comments=True)
            found.append(pytest.param(folder, words, id=f"{parameter.id}: {' '.join(words)}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("path", "snippet", "output"), blocks("python"))
def test_snippet_runs(path, snippet, output, tmp_path):
    for name in OPTIONAL:
        if re.search(rf"^(import|from) .*\b{name}\b", snippet, re.MULTILINE):
            pytest.importorskip(name, reason=f"{name} is not installed (pip install {name})")
    result = run_python("-c", snippet, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    promised = output.splitlines() or re.findall(r"print\(.*\)  # (.*)", snippet)
    assert result.stdout.strip().splitlines() == promised


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "words"), typed_commands())
def test_command_names_what_exists(folder, words):
    checks = {
        "make": check_make,
        "pip": check_pip,
        "sbatch": check_batch,
        ".venv/bin/python": check_tool,
        "python": check_module,
    }
    checks[words[0]](folder, words[1:])


def inline_commands():
    """Calls of make and of modules in the text; the changelog has names of the past."""
    found = set()
    for path in PAGES:
        if path.name != "CHANGELOG.md":
            found |= set(re.findall(r"`((?:make|python -m) [^`\n]+)`", path.read_text()))
    return sorted(found)


@pytest.mark.parametrize("code", inline_commands())
def test_inline_command_names_what_exists(code):
    words = code.split()
    if words[0] == "python":
        assert importlib.util.find_spec(words[2]), words[2]
        return
    rules = "".join(
        (ROOT / name).read_text() for name in ("Makefile", "ci/mmcv.mk", "ci/project.mk")
    )
    targets = set(re.findall(r"^([\w-]+):(?!=)", rules, re.MULTILINE))
    named = {word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)}
    assert named <= targets | {"swin", "resnet", "san", "pvt"}


def check_make(folder, words):
    if words[:1] == ["-C"]:
        folder, words = folder / words[1], words[2:]
    dry = subprocess.run(
        ["make", "--dry-run", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    assert settings.keys() <= SETTINGS
    if "CONFIG" in settings:
        assert (folder / settings["CONFIG"]).is_file()
    if "train" in words:
        command = ["make", "check-launch", *(word for word in words if "=" in word)]
        subprocess.run(command, cwd=folder, check=True)
        parsers.train_parser().parse_args(["config", *shlex.split(settings.get("ARGS", ""))])
    if "predict" in words:
        files = ["config", settings["CHECKPOINT"], *settings["IMAGES"].split()]
        parsers.predict_parser().parse_args([*files, *shlex.split(settings.get("ARGS", ""))])
    if "analyze" in words:
        files = ["config", settings["CHECKPOINT"], "--out", settings["OUT"]]
        parsers.analyze_parser().parse_args([*files, *shlex.split(settings.get("ARGS", ""))])
    if "export" in words:
        files = ["config", settings["CHECKPOINT"], settings["OUT"]]
        parsers.export_parser().parse_args([*files, *shlex.split(settings.get("ARGS", ""))])


def check_batch(folder, words):
    script, project, config, *flags = words
    assert (folder / script).is_file()
    assert (folder / project / config).is_file()
    parsers.train_parser().parse_args([config, *flags])


def option_lines():
    """Commands of the pages that train a classifier with options: folder, config, options."""
    found = []
    for parameter in typed_commands():
        folder, words = parameter.values
        if words[:1] != ["make"]:
            continue
        if words[1] == "-C":
            folder, words = folder / words[2], words[2:]
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        classifier = settings.get("CONFIG", "").startswith("configs/acmix")
        if classifier and "train" in words and ("ARGS" in settings or "_amp" in settings["CONFIG"]):
            arguments = [settings["CONFIG"], *settings.get("ARGS", "").split()]
            found.append(pytest.param(folder, arguments, id=parameter.id))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "arguments"), option_lines())
def test_options_of_a_training_build(folder, arguments, monkeypatch):
    # It only asks for a GPU when it is made.
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    args = parsers.train_parser().parse_args(arguments)
    cfg = settings.load_config(folder, args)
    settings.apply_train_flags(cfg, args)
    checks.check_start(cfg)
    options = args.cfg_options or {}
    cfg.model.head.num_classes = cfg.model.head.num_classes or 3
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(cfg.model)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for name in {key.split(".")[1] for key in options if key.startswith("default_hooks.")}:
            HOOKS.build(cfg.default_hooks[name])
        DATA_SAMPLERS.build(dict(cfg.train_dataloader.sampler, dataset=range(64)))
    trained = [p for group in wrapper.param_groups for p in group["params"] if p.requires_grad]
    assert trained
    if "model.backbone.frozen_stages" in options:
        assert len(trained) < len(list(model.parameters()))
    if "optim_wrapper.paramwise_cfg.layer_decay_rate" in options:
        assert len({group["lr"] for group in wrapper.param_groups}) > 4


def check_pip(folder, words):
    assert words[0] in ("install", "uninstall")
    for name in (word for word in words[1:] if "/" in word):
        if wheel := re.fullmatch(r"dist/(acmix\w*)-\*\.whl", name):
            assert wheel[1] in PACKAGES
        else:
            assert (ROOT / name.split("[")[0] / "pyproject.toml").is_file()


def check_module(folder, words):
    flag, package, command, *arguments = words
    assert flag == "-m"
    assert package in PACKAGES
    assert command in commands.COMMANDS
    if command in ("train", "test", "analyze"):
        args = getattr(parsers, f"{command}_parser")().parse_args(arguments)
        settings.read_config(project_folder(package), args)


def check_tool(folder, words):
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
        return
    script, config = ROOT / words[0], words[1]
    assert script.is_file()
    assert (script.parents[1] / config).is_file()
    parser = parsers.train_parser() if script.name == "train.py" else parsers.test_parser()
    parser.parse_args(words[1:])


def page_name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_every_block_says_what_it_is(path):
    marks = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)
    assert set(marks[::2]) <= RUN | NOT_RUN
    assert not any(marks[1::2])


def prose(path):
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("]", " "), text)


def anchors(path):
    """Headings of a page as GitHub and the site name them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(path))
    for link in filter(None, (target for pair in links for target in pair)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_tables_are_those_of_the_metafiles():
    check = subprocess.run(
        [sys.executable, ROOT / "ci" / "tables.py"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
