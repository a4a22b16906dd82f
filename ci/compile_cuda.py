"""Compile every CUDA kernel for every architecture with NVRTC; no GPU and no driver are needed.

Prints registers, stack and spills of each instantiation and fails on a compile error or a spill.
Needs torch's CUDA wheels (they bring NVRTC and cuda-bindings) and the acmix package:

    python ci/compile_cuda.py [--arch 80 90] [--source attention]
"""

import argparse
import re
import sys
import sysconfig
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from acmix.backends.cuda import sources

ARCHITECTURES = (75, 80, 86, 90, 100, 120)
_USAGE = re.compile(
    r"Compiling entry function '(?P<mangled>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Usage(NamedTuple):
    """What one compiled kernel takes."""

    name: str
    arch: int
    registers: int
    stack: int
    spilled: int


def why_not() -> str | None:
    """Why kernels can't be compiled here, if so."""
    try:
        from cuda.bindings import nvrtc
    except ImportError:
        return "cuda-bindings is missing: it comes with torch's CUDA wheels"
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        return f"NVRTC cannot be loaded: {error}"
    if not _include_folders():
        return "the CUDA headers are missing: pip install nvidia-cuda-runtime"
    return None


def compile_source(stem: str, dtype: torch.dtype, arch: int) -> list[Usage]:
    """Compile all instantiations of a source for one dtype and architecture."""
    from cuda.bindings import nvrtc

    names = sources.names(stem, dtype)
    program, text = _compile(stem, names, f"sm_{arch}", "--ptxas-options=-v")
    found = {match["mangled"]: match for match in _USAGE.finditer(text)}
    usages = []
    for name in names:
        match = found[_checked(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode()]
        spilled = int(match["stores"]) + int(match["loads"])
        usages.append(Usage(name, arch, int(match["registers"]), int(match["stack"]), spilled))
    return usages


def compile_ptx(stem: str, name: str, arch: int = 80) -> str:
    """The PTX of one instantiation."""
    from cuda.bindings import nvrtc

    program, _ = _compile(stem, [name], f"compute_{arch}")
    text = _buffer(_checked(nvrtc.nvrtcGetPTXSize(program)))
    _checked(nvrtc.nvrtcGetPTX(program, text))
    return text.rstrip(b"\0").decode()


def _compile(stem: str, names: list[str], target: str, *options: str) -> tuple:
    """The NVRTC program of a source with some instantiations, and its log."""
    from cuda.bindings import nvrtc

    program = _checked(
        nvrtc.nvrtcCreateProgram(sources.source(stem).encode(), f"{stem}.cu".encode(), 0, [], [])
    )
    for name in names:
        _checked(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [*sources.COMPILE_OPTIONS, f"-arch={target}", *options]
    options = [option.encode() for option in (*options, *map("-I{}".format, _include_folders()))]
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    log = _buffer(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    if status.value:
        raise RuntimeError(f"{stem}.cu, {target}, {names[0]}, ...:\n{log.decode()}")
    return program, log.decode()


def main() -> int:
    """Compile, print the table, and return 1 if anything spilled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--source", nargs="+", default=sources.SOURCES, choices=sources.SOURCES)
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    start = time.time()
    jobs = [(s, t, a) for s in options.source for t in sources.TYPES for a in options.arch]
    with ProcessPoolExecutor() as pool:
        usages = [u for part in pool.map(compile_source, *zip(*jobs, strict=True)) for u in part]
    _print_table(usages, options.arch)
    spills = [usage for usage in usages if usage.spilled]
    seconds = time.time() - start
    print(f"{len(usages)} kernels compiled in {seconds:.0f} s, {len(spills)} of them spill")
    return 1 if spills else 0


def _print_table(usages: list[Usage], architectures: list[int]) -> None:
    """Registers by kernel and architecture; +n for n bytes of stack, !n for n spilled bytes."""
    rows: dict[str, dict[int, Usage]] = {}
    for usage in usages:
        rows.setdefault(usage.name, {})[usage.arch] = usage
    print(
        f"{'registers (+stack) (!spilled)':50}", *(f"{f'sm_{arch}':>9}" for arch in architectures)
    )
    for name, row in rows.items():
        print(f"{name:50}", *(f"{_cell(row[arch]):>9}" for arch in architectures))


def _cell(usage: Usage) -> str:
    stack = f"+{usage.stack}" if usage.stack else ""
    spilled = f"!{usage.spilled}" if usage.spilled else ""
    return f"{usage.registers}{stack}{spilled}"


def _include_folders() -> list[str]:
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    headers = [*packages.glob("cu*/include"), *packages.glob("cuda_*/include")]
    return [str(folder) for folder in headers if (folder / "cuda_fp16.h").is_file()]


def _buffer(size: int) -> bytes:
    """Bytes for NVRTC to write into.

    At least two: Python shares one object among all equal single bytes, and a log of one byte
    would change it everywhere.
    """
    return b" " * max(size, 2)


def _checked(result: tuple):
    """The value of an NVRTC call, or its error."""
    from cuda.bindings import nvrtc

    if result[0].value:
        raise RuntimeError(nvrtc.nvrtcGetErrorString(result[0])[1].decode())
    return result[1] if len(result) == 2 else result[1:]


if __name__ == "__main__":
    sys.exit(main())
