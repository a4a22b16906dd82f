"""Build the CPU library from ``acmix/csrc/cpu`` with the C++ compiler at hand.

``python -m acmix.backends.cpu.build`` builds it now and prints where. Needs nothing but the
standard library, so that ``setup.py`` can load this file before torch is installed.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
SOURCE = PACKAGE / "csrc" / "cpu"
INSTALLED = Path(__file__).resolve().parent / "lib" / "libacmix_cpu.so"

# Compiled once per instruction set.
KERNELS = (
    "attention.cpp",
    "aggregation.cpp",
    "difference.cpp",
    "convolution.cpp",
    "folding.cpp",
    "windows.cpp",
)

_X86 = ("x86_64", "amd64")
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-psabi"]
_X86_VARIANTS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    # Without the width GCC keeps to 256 bits, with half of the registers' worth.
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
    + ["-mprefer-vector-width=512"],
}
# The kernel that multiplies by tiles, for compilers that know them, and the variant that has all
# others for such machines.
TILED = "tiled.cpp"
_TILED_VARIANT, _TILED_FLAGS = "avx512", ["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]


class BuildError(RuntimeError):
    """The library can't be built; the message says why and what to do."""


def find_compiler() -> list[str]:
    """Command of the C++ compiler: ``$CXX``, else the first of g++, clang++ and c++ on the path.

    Raises:
        BuildError: There is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    wanted = f"CXX={chosen[0]!r} is not on the path" if chosen else "no C++ compiler on the path"
    raise BuildError(f"{wanted}: install g++ or clang++, or set CXX to a C++17 compiler")


def compiler_version(compiler: list[str]) -> str:
    """First line of ``--version``, or the command itself where that fails."""
    try:
        found = subprocess.run([*compiler, "--version"], capture_output=True, text=True)
    except OSError:
        return compiler[0]
    return (found.stdout.splitlines() or compiler)[0]


def knows_tiles(compiler: list[str]) -> bool:
    """Whether compiler and assembler have the instructions of AMX, which x86 alone has."""
    if platform.machine().lower() not in _X86:
        return False
    code = 'void f() { asm("tdpbf16ps %tmm2, %tmm1, %tmm0"); }'
    command = [*compiler, *_TILED_FLAGS, "-x", "c++", "-c", "-", "-o", os.devnull]
    try:
        return subprocess.run(command, input=code, capture_output=True, text=True).returncode == 0
    except OSError:
        return False


def cached_library(compiler: list[str]) -> Path:
    """Where the library of these sources and this compiler lives in the user's cache.

    ``$ACMIX_CACHE_DIR``, else ``$XDG_CACHE_HOME/acmix``, else ``~/.cache/acmix``.
    """
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    recipe = [compiler_version(compiler), *compiler, *_FLAGS, platform.machine()]
    digest.update(repr([recipe, _X86_VARIANTS, _TILED_FLAGS]).encode())
    root = os.environ.get("ACMIX_CACHE_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root or Path(caches, "acmix")) / digest.hexdigest()[:16] / "libacmix_cpu.so"


def compilations(compiler: list[str]) -> list[tuple[str, str, list[str]]]:
    """Names, sources and options of the objects of this machine's library."""
    x86 = platform.machine().lower() in _X86
    variants, common = _X86_VARIANTS if x86 else {"baseline": []}, ["-DACMIX_X86"] if x86 else []
    found = [
        (f"{name}_{source}", source, [*common, f"-DACMIX_ISA={name}", *options])
        for name, options in variants.items()
        for source in KERNELS
    ]
    if knows_tiles(compiler):
        common.append(f"-DACMIX_AMX={_TILED_VARIANT}")
        found.append((TILED, TILED, [*common, *variants[_TILED_VARIANT], *_TILED_FLAGS]))
    return [*found, ("dispatch", "dispatch.cpp", common)]


def build(target: Path, compiler: list[str] | None = None) -> Path:
    """Compile every variant and link them into ``target``, which appears whole or not at all.

    Raises:
        BuildError: No compiler, or it fails; the message ends with its output.
    """
    compiler = compiler or find_compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the target's directory, so that the rename is atomic: of two processes that build at
        # once, both succeed and the last one wins with an equal file.
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            commands, objects = [], []
            for name, source, options in compilations(compiler):
                objects.append(str(Path(scratch) / f"{name}.o"))
                files = ["-c", str(SOURCE / source), "-o", objects[-1]]
                commands.append([*compiler, *_FLAGS, *options, *files])
            _run_together(commands)
            library = str(Path(scratch) / target.name)
            _run_together([[*compiler, "-shared", "-pthread", *objects, "-o", library]])
            os.replace(library, target)
    except OSError as error:
        remedy = "set ACMIX_CACHE_DIR to a directory that can be written"
        raise BuildError(f"can't write {target}: {error}; {remedy}") from error
    return target


def _run_together(commands: list[list[str]]) -> None:
    """Run compiler commands at once; raise with the output of the first that fails."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    for command, process, output in zip(commands, running, outputs, strict=True):
        if process.returncode:
            tail = "\n".join(output.splitlines()[-15:])
            raise BuildError(
                f"{shlex.join(command)} failed ({process.returncode}): set CXX to another "
                f"C++17 compiler, or use backend='torch'\n{tail}"
            )


def main() -> int:
    """Build into the user's cache and print the path."""
    from acmix.backends.cpu.cache import checked_library

    try:
        compiler = find_compiler()
        path = cached_library(compiler)
        path.unlink(missing_ok=True)
        print(checked_library(path, lambda: build(path, compiler)))
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
