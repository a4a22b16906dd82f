"""The hosted workflows call what is there, and the notes of a release are those of its version."""

import re
import subprocess
import sys

import pytest
import yaml

import acmix
from support import ROOT

sys.path.insert(0, str(ROOT / "ci"))
import release_notes  # noqa: E402

TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
RUNS = [
    (path.name, step["run"])
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    for job in yaml.safe_load(path.read_text())["jobs"].values()
    for step in job["steps"]
    if "run" in step
]


@pytest.mark.parametrize(("workflow", "line"), RUNS)
def test_steps_name_what_exists(workflow, line):
    program, *words = line.split()
    if program == "make":
        targets = {word for word in words if "=" not in word}
        assert targets
        assert targets <= set(TARGETS)
    elif program == "python3":
        assert (ROOT / words[0]).is_file()
    elif program != "gh":
        assert (ROOT / program).is_file()


def test_notes_are_of_this_version():
    assert release_notes.notes(f"v{acmix.__version__}").startswith("- ")
    with pytest.raises(SystemExit, match="tag v9: core/pyproject.toml has version"):
        release_notes.notes("v9")


def test_what_wheels_leave_is_ignored():
    left = ["dist/acmix-1.whl", "core/build/lib/x.so", "swin/acmix_swin.egg-info/PKG-INFO"]
    command = ["git", "check-ignore", *left]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode == 128:
        pytest.skip("this tree is no clone")
    assert ran.stdout.split() == left
