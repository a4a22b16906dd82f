"""Load the CPU library and call it: mirrors ``csrc/cpu/acmix_cpu.h``.

Environment: ``ACMIX_CPU_ISA`` forces a variant (baseline, avx2, avx512), ``ACMIX_CPU_LIBRARY``
loads this very file, ``ACMIX_CPU_KERNELS=0`` turns the library off, ``ACMIX_CACHE_DIR`` moves the
cache of libraries built on first use.
"""

import ctypes
import functools
import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from acmix.backends.cpu import build

ISAS = ("baseline", "avx2", "avx512")
MAX_MAPS = 8

OPS = {
    name: number
    for number, name in enumerate(
        [
            "attention_forward",
            "attention_backward",
            "aggregation_forward",
            "aggregation_backward",
            "subtraction_forward",
            "subtraction_backward",
        ]
    )
}
_TYPES = {torch.float32: 0, torch.float64: 1}
_lock = threading.Lock()


class _Map(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 5)]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("op", "type", "reflect", "threads")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "depth", "height", "width")),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "dilation")),
        ("map", _Map * MAX_MAPS),
        ("position", _Map),
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("backward", "type", "threads", "ones", "add")),
        *((name, ctypes.c_int64) for name in ("batch", "maps", "taps", "outs", "depth")),
        *((name, ctypes.c_int64) for name in ("height", "width", "kernel", "stride", "band")),
        *((name, ctypes.c_void_p) for name in ("layer", "kernels")),
        *((name, _Map) for name in ("in", "out", "grad_in")),
        *((name, ctypes.c_void_p) for name in ("grad_layer", "grad_kernels")),
    ]


class Library:
    """One loaded library.

    Attributes:
        path: The file.
        isa: The variant in use, one of ``ISAS``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._c = ctypes.CDLL(str(path))
        self._c.acmix_call_size.restype = ctypes.c_int64
        self._c.acmix_run.argtypes = [ctypes.POINTER(_Call), ctypes.c_int]
        self._c.acmix_convolve.argtypes = [ctypes.POINTER(_Convolution), ctypes.c_int]
        self._c.acmix_set_pool.argtypes = [ctypes.c_void_p]
        if self._c.acmix_call_size() != ctypes.sizeof(_Call) + ctypes.sizeof(_Convolution):
            raise OSError(f"{path} belongs to another version of acmix: delete it and try again")
        self.best_isa = ISAS[self._c.acmix_best_isa()]
        self.isa = os.environ.get("ACMIX_CPU_ISA") or self.best_isa
        if self.isa not in self.isas:
            raise OSError(f"ACMIX_CPU_ISA={self.isa}: this machine has {', '.join(self.isas)}")
        self._c.acmix_set_pool(_openmp_pool())
        # A forked child must not enter the parent's OpenMP pool, whose threads it does not have.
        os.register_at_fork(after_in_child=lambda: self._c.acmix_set_pool(None))

    @property
    def isas(self) -> tuple[str, ...]:
        """Variants that this machine can run, slowest first."""
        return ISAS[: ISAS.index(self.best_isa) + 1]

    def run(
        self,
        op: str,
        maps: list[Tensor],
        sizes: tuple[int, ...],
        *,
        reflect: bool,
        position: Tensor | None = None,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Run one kernel.

        Args:
            op: A key of ``OPS``.
            maps: Inputs, then outputs, all (batch, head, channel, row, column) in any strides and
                in the order that the kernel documents.
            sizes: batch, heads, depth, height, width, kernel, stride, dilation.
            reflect: Whether borders reflect; else they read as zero, or are cut from the softmax.
            position: Taken off the keys of the attention, in the shape of the keys.
            threads: Upper bound; torch's number of threads if ``None``.
            isa: Variant; the best of this machine if ``None``.

        Raises:
            MemoryError: No memory for the scratch.
        """
        call = _Call(OPS[op], _TYPES[maps[0].dtype], reflect, threads or torch.get_num_threads())
        names = ("batch", "heads", "depth", "height", "width", "kernel", "stride", "dilation")
        for name, size in zip(names, sizes, strict=True):
            setattr(call, name, size)
        for slot, tensor in zip(call.map, maps, strict=False):
            _describe(slot, tensor)
        if position is not None:
            _describe(call.position, position)
        self._check(self._c.acmix_run(ctypes.byref(call), ISAS.index(isa or self.isa)), isa)

    def convolve(
        self,
        maps: dict[str, Tensor],
        layer: Tensor | None,
        kernels: Tensor,
        *,
        stride: int,
        band: int,
        grads: tuple[Tensor | None, Tensor] | None = None,
        add: bool = False,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Run the convolution path, or its backward pass when ``grads`` are given.

        Args:
            maps: ``in``, ``out`` and, backward, ``grad_in``, all (batch, map, channel, row,
                column); ``out`` is its gradient then. Channels of ``in`` and ``grad_in`` are
                neighbours in memory, and so are the maps of ``out``.
            layer: (taps, maps), contiguous, or ``None``; with one column more the last one is for
                a map of ones.
            kernels: (outputs, taps, k, k, channels), contiguous; taps are the maps themselves, and
                one of ones if there is one more, without a layer.
            stride: Stride of the output.
            band: Rows of one unit of work: of the output, or backward of the input.
            grads: Gradients of layer and kernels, one summand first for each image and band.
            add: Whether ``grad_in`` is added to.
            threads: Upper bound; torch's number of threads if ``None``.
            isa: Variant; the best of this machine if ``None``.

        Raises:
            MemoryError: No memory for the scratch.
        """
        batch, count, depth, height, width = maps["in"].shape
        columns = kernels.shape[1] if layer is None else layer.shape[1]
        call = _Convolution(
            backward=grads is not None,
            type=_TYPES[kernels.dtype],
            threads=threads or torch.get_num_threads(),
            ones=columns - count,
            add=add,
            batch=batch,
            maps=count,
            taps=0 if layer is None else layer.shape[0],
            outs=kernels.shape[0],
            depth=depth,
            height=height,
            width=width,
            kernel=kernels.shape[2],
            stride=stride,
            band=band,
            layer=None if layer is None else layer.data_ptr(),
            kernels=kernels.data_ptr(),
        )
        for name, tensor in maps.items():
            _describe(getattr(call, name), tensor)
        if grads is not None:
            call.grad_layer = None if grads[0] is None else grads[0].data_ptr()
            call.grad_kernels = grads[1].data_ptr()
        self._check(self._c.acmix_convolve(ctypes.byref(call), ISAS.index(isa or self.isa)), isa)

    def _check(self, status: int, isa: str | None) -> None:
        if status == -1:
            raise MemoryError("no memory for the scratch of a CPU kernel: use fewer threads")
        if status:
            raise OSError(f"{self.path} has no {isa or self.isa} variant: rebuild it")


def _describe(slot: _Map, tensor: Tensor) -> None:
    slot.data = tensor.data_ptr()
    slot.stride = (ctypes.c_int64 * 5)(*tensor.stride())


def load() -> Library:
    """The library of this process, built first where need be.

    Raises:
        OSError: The file can't be loaded.
        acmix.backends.cpu.build.BuildError: It can't be built.
    """
    found, problem = _load_once()
    if problem is not None:
        raise problem
    return found


def problem() -> str | None:
    """Why there is no library, or ``None`` when there is one. Tries once per process."""
    error = _load_once()[1]
    return None if error is None else str(error)


def _load_once() -> tuple[Library | None, Exception | None]:
    with _lock:
        return _load_cached()


@functools.cache
def _load_cached() -> tuple[Library | None, Exception | None]:
    try:
        if os.environ.get("ACMIX_CPU_KERNELS") == "0":
            raise OSError("turned off by ACMIX_CPU_KERNELS=0")
        return Library(_find()), None
    except (OSError, AttributeError, build.BuildError) as error:
        return None, error


def _find() -> Path:
    """The library named, the one installed, the one in the cache, or a new one in the cache."""
    named = os.environ.get("ACMIX_CPU_LIBRARY")
    if named:
        return Path(named)
    if build.INSTALLED.is_file():
        return build.INSTALLED
    compiler = build.find_compiler()
    cached = build.cached_library(compiler)
    return cached if cached.is_file() else build.build(cached, compiler)


def _openmp_pool() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch loaded, where there is one."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    names = ("libgomp", "libomp", "libiomp")
    paths = {line.split(maxsplit=5)[-1] for line in maps if "/" in line}
    paths = [path for path in paths if Path(path).name.startswith(names)]
    for path in sorted(paths, key=lambda path: "torch" not in path):
        try:
            entry = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value
    return None
