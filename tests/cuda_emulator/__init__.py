"""CUDA kernels on the CPU, behind the calling convention of ``cupy.RawModule``.

The untouched kernel text is compiled by g++ behind ``device.h``; ``runtime.cpp`` runs its threads.
``EmulatedRuntime`` takes the place of ``acmix.backends.cuda.launcher.runtime``, so that launch
geometry, argument order and argument types are those of the real launch.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy
import torch

from acmix.backends.cuda import sources

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-w")
# Compiled for the sanitizers and linked without them: runtime.cpp has their functions.
_CHECKS = ("thread", "bounds,signed-integer-overflow,shift,integer-divide-by-zero,alignment")
_DTYPES = {"F": torch.float32, "D": torch.float64, "H": torch.float16, "B": torch.bfloat16}
_NUMBERS = {
    "i": (numpy.int32, ctypes.c_int32),
    "f": (numpy.float32, ctypes.c_float),
    "d": (numpy.float64, ctypes.c_double),
}


class KernelError(RuntimeError):
    """What a kernel or its launch did wrong."""


def why_not() -> str | None:
    """Why kernels can't be emulated here, if so."""
    if not sys.platform.startswith("linux"):
        return "the emulation of the kernels needs Linux"
    return None if shutil.which("g++") else "the emulation of the kernels needs g++"


class EmulatedRuntime:
    """Stands in for ``acmix.backends.cuda.launcher.CupyRuntime`` with tensors of the CPU.

    Args:
        check: Compile for and run with the checks of ``runtime.cpp``.
        order: Of threads and blocks: 0 ascending, 1 descending, others random.
        edit: Changes the kernel text before it is compiled, to plant a bug.
        first_block: Where the grid starts; the blocks before it don't run.
    """

    def __init__(self, *, check=False, order=0, edit=None, first_block=None):
        self.check, self.order, self.edit = check, order, edit
        self.first_block = first_block or (lambda grid: 0)
        self.tensors = {}

    @contextmanager
    def on(self, tensor):
        self.tensors = {}
        yield

    def module(self, stem, name, tensor):
        text = sources.source(stem)
        # One library for all kernels of a source and dtype, or for the single one of an edit.
        names = sources.names(stem, tensor.dtype)
        if self.edit is not None:
            text, names = self.edit(text), [name]
        return EmulatedModule(self, _library(text, tuple(names), self.check), names)

    def address(self, tensor):
        self.tensors[tensor.data_ptr()] = tensor
        return tensor.data_ptr()


class EmulatedModule:
    """A compiled source; see ``cupy.RawModule``."""

    def __init__(self, runtime, library, names):
        self.runtime, self.library, self.names = runtime, library, list(names)

    def get_function(self, name):
        index = self.names.index(name)

        def function(grid, block, args, *, shared_mem=0):
            signature = getattr(self.library, f"emulator_signature_{index}")
            signature.restype = ctypes.c_char_p
            places = _places(self.runtime.tensors, self.runtime.check)
            values = _arguments(name, signature().decode(), args, places)
            _check_geometry(name, grid, block, shared_mem)
            first = self.runtime.first_block(grid[0])
            self.library.emulator_prepare(
                self.runtime.order,
                int(self.runtime.check),
                ctypes.c_size_t(shared_mem),
                ctypes.c_long(first),
            )
            for place in places.values():
                self.library.emulator_add_buffer(
                    ctypes.c_size_t(place.data_ptr()), ctypes.c_size_t(place.nbytes)
                )
            pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
            failed = getattr(self.library, f"emulator_launch_{index}")(*sizes, pointers)
            for tensor, place in zip(self.runtime.tensors.values(), places.values(), strict=True):
                _copy(place, tensor)
            if failed:
                raise KernelError(_errors(self.library, name))

        return function


def _places(tensors, check):
    """Where a launch finds its tensors, by address.

    A check needs room on both sides: past the end of one tensor may lie another one, and a bug
    that reaches into it would pass for a read of that.
    """
    if not check:
        return tensors
    places = {}
    for address, tensor in tensors.items():
        count = tensor.numel()
        place = tensor.new_empty(3 * count)[count : 2 * count]
        _copy(tensor, place)
        places[address] = place
    return places


def _copy(source, target):
    """Copy the memory as it lies, whatever the strides."""
    if source is not target:
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)


def _arguments(name, signature, args, places):
    """The arguments as C values, after a check of number and types."""
    if len(args) != len(signature):
        raise KernelError(f"{name}: {len(args)} arguments, the kernel takes {len(signature)}")
    values = []
    for i, (arg, letter) in enumerate(zip(args, signature, strict=True)):
        if letter in _DTYPES:
            given = places[arg].dtype
            if given != _DTYPES[letter]:
                raise KernelError(f"{name}: argument {i} is {given}, not {_DTYPES[letter]}")
            values.append(ctypes.c_void_p(places[arg].data_ptr()))
        else:
            expected, c_type = _NUMBERS[letter]
            if type(arg) is not expected:
                raise KernelError(f"{name}: argument {i} is {type(arg)}, not {expected}")
            values.append(c_type(arg.item()))
    return values


def _check_geometry(name, grid, block, shared_mem):
    """The limits that every device has."""
    threads = block[0] * block[1] * block[2]
    fits = 0 < grid[0] < 2**31 and grid[1:] == (1, 1) and 0 < threads <= 128
    fits = fits and block[2] <= 64 and 0 <= shared_mem <= 48 * 1024
    if not fits:
        raise KernelError(f"{name}: bad launch {grid}, {block}, {shared_mem} bytes shared")


def _errors(library, name):
    """The errors of a launch with source lines."""
    library.emulator_error.restype = ctypes.c_char_p
    texts = [library.emulator_error(i).decode() for i in range(library.emulator_error_count())]
    return f"{name}: " + "\n".join(
        re.sub(r"@([0-9a-f]+)", lambda match: _line(library._name, match[1]), text)
        for text in texts
    )


def _line(path, address):
    """``line <n>`` of the kernel text for a return address."""
    call = hex(int(address, 16) - 1)
    found = subprocess.run(["addr2line", "-i", "-e", path, call], capture_output=True, text=True)
    numbers = re.findall(r"kernel\.cu:(\d+)", found.stdout)
    return f"line {' < '.join(numbers)}" if numbers else "(line unknown)"


@cache
def _library(text, names, check):
    """Compile a kernel text with the given instantiations, or take it from the disk."""
    exports = [f"EMULATOR_EXPORT({i}, {name})" for i, name in enumerate(names)]
    unit = "\n".join(['#include "device.h"', '#line 1 "kernel.cu"', text, *exports])
    own = "".join((_HERE / name).read_text() for name in ("device.h", "runtime.cpp"))
    key = hashlib.sha256(f"{unit}{own}{_FLAGS}{check}".encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir()) / f"acmix-emulator-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    built = folder / f"{key}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _build(Path(scratch), unit, check).replace(built)
    return ctypes.CDLL(str(built))


def _build(folder, unit, check):
    """Compile the kernel and the runtime, the latter never instrumented, and link them."""
    (folder / "kernel.cpp").write_text(unit)
    includes = [f"-I{_HERE}", f"-I{_HERE / 'include'}"]
    checks = ["-g", "-O1", *(f"-fsanitize={kind}" for kind in _CHECKS)] if check else []
    for source, extra in ((folder / "kernel.cpp", checks), (_HERE / "runtime.cpp", [])):
        target = folder / f"{source.stem}.o"
        command = ["g++", *_FLAGS, *extra, *includes, "-c", str(source), "-o", str(target)]
        _compile(command)
    built = folder / "kernel.so"
    _compile(["g++", "-shared", "-o", str(built), *(str(o) for o in folder.glob("*.o"))])
    return built


def _compile(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KernelError(done.stderr[:4000])
