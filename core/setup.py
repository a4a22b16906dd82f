"""Builds the CPU kernels along with the package; all settings are in pyproject.toml.

The kernels are an extra: without a compiler, or when it fails, the installation goes on and says
why, and acmix runs on torch alone.
"""

import importlib.util
import platform
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
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


class WheelOfAnyPython(bdist_wheel):
    """The library is loaded by ctypes, so every Python of a platform takes the same wheel."""

    def get_tag(self) -> tuple[str, str, str]:
        """Tags of Python, interface and platform."""
        name = super().get_tag()[2]
        # Of a Python for two kinds of machine; the library is for this one.
        return "py3", "none", name.replace("universal2", platform.machine())


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfAnyPython},
    distclass=PlatformDistribution,
)
