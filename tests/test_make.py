"""Arguments reach the commands through make as they were typed."""

import ast
import os
import shlex
import subprocess
import sys

import pytest

from support import ROOT

CASES = {
    "--cfg-options a.scale=(320,240)": ["--cfg-options", "a.scale=(320,240)"],
    "--cfg-options a=[(1,2),(3,4)] b=1": ["--cfg-options", "a=[(1,2),(3,4)]", "b=1"],
    "--cfg-options a=*.py;b&c|d<e": ["--cfg-options", "a=*.py;b&c|d<e"],
    "--cfg-options 'a.scale=(320, 240)'": ["--cfg-options", "a.scale=(320, 240)"],
    '--resume "my run.pth" --amp': ["--resume", "my run.pth", "--amp"],
    r"--resume my\ run.pth": ["--resume", "my run.pth"],
    r"--resume run\(1\).pth": ["--resume", "run(1).pth"],
    "": [],
}


@pytest.mark.parametrize("tool", ["train", "test"])
@pytest.mark.parametrize("typed", CASES)
def test_arguments_come_through(typed, tool):
    show = f"{shlex.quote(sys.executable)} -c 'import sys; print(sys.argv[1:])'"
    settings = [f"PY={show}", "INSTALLED=", "CHECKPOINT=x.pth", f"ARGS={typed}"]
    result = subprocess.run(
        ["make", "-s", "-C", ROOT / "swin", tool, *settings],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    script, _, *given = ast.literal_eval(result.stdout)
    assert script == f"tools/{tool}.py"
    assert given == (["x.pth"] if tool == "test" else []) + CASES[typed]


def test_files_of_the_analysis_are_named_from_where_make_was_called(tmp_path):
    show = f"{shlex.quote(sys.executable)} -c 'import sys; print(sys.argv[1:])'"
    settings = [f"PY={show}", "INSTALLED=", "CHECKPOINT=x.pth", "OUT=seen", "IMAGES=a.png /b.png"]
    result = subprocess.run(
        ["make", "-s", "-C", ROOT / "swin", "analyze", *settings, "ARGS=--query 0.5,0.5"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PWD": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    script, _, *given = ast.literal_eval(result.stdout)
    assert script == "tools/analyze.py"
    images = ["--image", f"{tmp_path}/a.png", "/b.png"]
    assert given == ["x.pth", "--out", f"{tmp_path}/seen", *images, "--query", "0.5,0.5"]


@pytest.mark.parametrize(("given", "missing"), [("OUT=x", "CHECKPOINT"), ("CHECKPOINT=x", "OUT")])
def test_what_the_analysis_lacks_is_named(given, missing):
    result = subprocess.run(
        ["make", "-s", "-C", ROOT / "swin", "analyze", "INSTALLED=", given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"error: {missing} is empty; give {missing}=" in result.stderr
