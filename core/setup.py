"""Builds the CPU kernels along with the package; all settings are in pyproject.toml.

The kernels are an extra: without a compiler, or when it fails, the installation goes on and says
why, and acmix runs on torch alone.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py


class BuildWithKernels(build_py):
    """Copies the Python files, then adds the compiled library."""

    def run(self) -> None:
        """Build into ``build_lib``; an editable install builds on first use instead."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib).resolve() / "acmix"
        # Loaded by its path: importing acmix needs torch, which is not there yet.
        path = package / "backends" / "cpu" / "build.py"
        spec = importlib.util.spec_from_file_location("acmix_cpu_build", path)
        cpu_build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cpu_build)
        try:
            print("acmix: CPU kernels built:", cpu_build.build(cpu_build.INSTALLED))
        except cpu_build.BuildError as error:
            print(f"acmix: no CPU kernels, torch serves instead: {error}", file=sys.stderr)


class PlatformDistribution(Distribution):
    """A wheel that may hold a compiled library is one for this platform."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is for one platform only."""
        return True


setup(cmdclass={"build_py": BuildWithKernels}, distclass=PlatformDistribution)
