"""Use the wheels as a new user does: ``make check-wheels``, after ``make wheels``.

In an environment of its own, without this tree, a compiler or libGL: installs, lists the models,
trains, tests and exports the embedded one. ``--packages-of PYTHON`` takes what comes from outside
from another environment instead of installing ``ci/locks/install.txt``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = ("resnet", "san", "pvt", "swin")
FEW = ["train_cfg.max_epochs=1", "param_scheduler=None", "default_hooks.logger.interval=1"]
FEW += [
    f"{split}_dataloader.{key}"
    for split in ("train", "val", "test")
    for key in ("dataset.indices=64", "num_workers=0")
]
# Run from the installed wheels; the tree's configs are read for comparison alone.
LOOK = """
import sys
from pathlib import Path
import acmix_pvt, acmix_resnet, acmix_san, acmix_swin, cv2, mmpretrain
from acmix.backends.cpu import build
from mmengine.config import Config
def read(path):
    try:
        return Config.fromfile(path).to_dict()
    except ModuleNotFoundError as error:  # MMDetection's and MMSegmentation's start from theirs
        return str(error)
projects = {"pvt": acmix_pvt, "resnet": acmix_resnet, "san": acmix_san, "swin": acmix_swin}
assert build.INSTALLED.is_file(), f"{build.INSTALLED} is missing"
count = 0
for name, package in projects.items():
    mim, tree = Path(package.__file__).parent / ".mim", Path(sys.argv[1], name)
    assert (mim / "model-index.yml").is_file() and (mim / "tools" / "train.py").is_file()
    for path in tree.glob("configs/**/*.py"):
        packed = mim / path.relative_to(tree)
        if "_base_" not in packed.parts:
            assert read(packed) == read(path), packed
            count += 1
models = mmpretrain.list_models("*acmix*")
assert len(models) >= 10, models
mmpretrain.get_model(models[-1])
maps = Path("/proc/self/maps")
assert not maps.is_file() or "libGL" not in maps.read_text(), "OpenCV loaded libGL"
print(len(models), "models,", count, "configs")
"""
SERVE = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
print(session.run(None, {"images": numpy.zeros((1, 3, 32, 32), "f")})[0].shape)
"""


def main() -> None:
    """Run every step and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="folder of the wheels")
    parser.add_argument("--packages-of", help="Python of an environment that has the others")
    args = parser.parse_args()
    wheels = sorted(path.resolve() for path in args.dist.glob("acmix*.whl"))
    if len(wheels) != 1 + len(PROJECTS):
        sys.exit(f"error: {args.dist}: has {len(wheels)} wheels; run 'make wheels' first")
    check_contents([*wheels, *args.dist.glob("acmix*.tar.gz")])
    with tempfile.TemporaryDirectory(prefix="new user ") as folder:
        user = User(Path(folder).resolve())
        user.install(wheels, args.packages_of)
        user.python("models and configs", "-c", LOOK, ROOT)
        for project in PROJECTS:
            user.train(project)
        user.python("serve the exported file", "-c", SERVE)


def check_contents(archives: list[Path]) -> None:
    """Every archive has the licence and types."""
    for path in archives:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                names = wheel.namelist()
        else:
            with tarfile.open(path) as sources:
                names = sources.getnames()
        for wanted in ("LICENSE", "py.typed"):
            if not any(Path(name).name == wanted for name in names):
                sys.exit(f"error: {path} has no {wanted}")


class User:
    """A folder with an environment, and nothing else on the path.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.bin = folder, folder / ".venv" / "bin"
        kept = {name: os.environ[name] for name in os.environ if name.startswith("PIP_")}
        self.environment = {**kept, "HOME": str(folder), "PATH": str(self.bin)}
        self.environment |= {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}

    def install(self, wheels: list[Path], others: str | None) -> None:
        """Make the environment with the wheels and what they need."""
        subprocess.run([sys.executable, "-m", "venv", self.home / ".venv"], check=True)
        pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps")
        if others is None:
            lock = ROOT / "ci" / "locks" / "install.txt"
            self.python("install the lock", *pip, "--require-hashes", "-r", lock)
        else:
            # Folders on the path, whose own .pth files, such as that of this tree, don't count.
            where = "import sysconfig; print(sysconfig.get_path('purelib'))"
            folder = subprocess.check_output([others, "-c", where], text=True).strip()
            own = self.python("find the packages", "-c", where).strip()
            Path(own, "others.pth").write_text(f"{folder}\n")
            # But for the distutils of setuptools, which Python 3.12 no longer has; it is asked for
            # once the folder is on the path, in the order of the names.
            shim = Path(folder, "distutils-precedence.pth")
            if shim.is_file():
                shutil.copy(shim, Path(own, f"z-{shim.name}"))
        self.python("install the wheels", *pip, "--ignore-installed", *wheels)

    def train(self, project: str) -> None:
        """Train the embedded model for an epoch; Swin is tested and exported too."""
        (config,) = (ROOT / project / "configs").glob("*digits-32px.py")
        command = ("-m", f"acmix_{project}")
        options = ["--cfg-options", *FEW]
        self.python(f"{project}: train", *command, "train", config.stem, *options)
        checkpoint = Path("work_dirs", config.stem, "epoch_1.pth")
        if project == "swin":
            self.python("swin: test", *command, "test", config.stem, checkpoint, *options)
            self.python("swin: export", *command, "export", config.stem, checkpoint, "model.onnx")

    def python(self, step: str, *arguments: str | Path) -> str:
        """Run Python here; what it printed."""
        start = time.monotonic()
        ran = subprocess.run(
            [self.bin / "python", *arguments],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ran.returncode:
            sys.exit(f"{ran.stdout}\nerror: {step} failed")
        print(f"{step}: {time.monotonic() - start:.1f} s", flush=True)
        return ran.stdout


if __name__ == "__main__":
    main()
