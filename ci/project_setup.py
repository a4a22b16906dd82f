"""setup.py of resnet, san, pvt and swin, where it is a link: packs what is beside the package.

A wheel has configs, metafile and tools in ``<package>/.mim``, where OpenMMLab's packages have
theirs. Configs shared in ``core/configs/_base_`` come along in ``configs/_base_``. An editable
installation leaves all of it in the project's folder. Settings are in pyproject.toml.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

PROJECT = Path(__file__).absolute().parent  # not resolved: this file may be a link
SHARED = PROJECT.parent / "core" / "configs" / "_base_"
_TO_SHARED = re.compile(r"(\.\./)+core/configs/_base_")
_JUNK = shutil.ignore_patterns("__pycache__")


def pack(package: str, parent: Path) -> None:
    """Write the ``.mim`` of a package that is in the folder ``parent``."""
    target = parent / package / ".mim"
    shutil.rmtree(target, ignore_errors=True)
    packed = PROJECT / package / ".mim"
    if packed.is_dir():  # in a source distribution
        shutil.copytree(packed, target)
        return
    for name in ("configs", "tools"):
        shutil.copytree(PROJECT / name, target / name, ignore=_JUNK)
    shutil.copy(PROJECT / "metafile.yml", target)
    (target / "model-index.yml").write_text("Import:\n  - metafile.yml\n")
    bases = target / "configs" / "_base_"
    for path in SHARED.glob("*.py"):
        if (bases / path.name).exists():
            raise FileExistsError(f"{path.name} is in {SHARED} and in {PROJECT}: rename one")
        shutil.copy(path, bases)
    for config in (target / "configs").rglob("*.py"):
        here = os.path.relpath(bases, config.parent)
        config.write_text(_TO_SHARED.sub(here, config.read_text()))


class BuildWithConfigs(build_py):
    """Copies the Python files, then packs."""

    def run(self) -> None:
        """Build into ``build_lib``."""
        super().run()
        if not self.editable_mode:
            for package in self.packages:
                pack(package, Path(self.build_lib))


class SourcesWithConfigs(sdist):
    """A source distribution is packed already: the shared configs are not in the project."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Fill the folder that becomes the archive."""
        super().make_release_tree(base_dir, files)
        for package in self.distribution.packages:
            pack(package, Path(base_dir))


setup(cmdclass={"build_py": BuildWithConfigs, "sdist": SourcesWithConfigs})
