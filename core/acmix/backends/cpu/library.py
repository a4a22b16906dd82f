"""Load the CPU library and call it: mirrors ``csrc/cpu/acmix_cpu.h``.

Environment: ``ACMIX_CPU_ISA`` forces a variant (one of ``ISAS``), ``ACMIX_CPU_LIBRARY`` loads this
very file, ``ACMIX_CPU_KERNELS=0`` turns the library off, ``ACMIX_CACHE_DIR`` moves the
cache of libraries built on first use.
"""

import ctypes
import logging
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from acmix.backends.cpu import build, cache
from acmix.backends.cpu.maps import Maps

ISAS = ("baseline", "avx2", "avx512", "amx")
ABI_VERSION = 7

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_lock = threading.Lock()
# The library, or why there is none, once it was looked for.
_loaded: "tuple[Library | None, Exception | None] | None" = None
_logger = logging.getLogger("acmix")


# A tensor of five axes, or nothing: its address, its type and its strides.
_MAP = "P6q"
_MAP_LENGTH = 7


class Layout:
    """How a struct of the header lies in memory.

    Args:
        *groups: Kind and names of fields in their order; the kinds are those of ``struct``.
    """

    def __init__(self, *groups: tuple[str, str]) -> None:
        fields = [(name, kind) for kind, names in groups for name in names.split()]
        self._struct = struct.Struct("@" + "".join(kind for _, kind in fields))
        # Of every field, among the numbers of the struct, and whether it is a map.
        self._places: dict[str, tuple[int, bool]] = {}
        self._length = 0
        for name, kind in fields:
            self._places[name] = self._length, kind is _MAP
            self._length += _MAP_LENGTH if kind is _MAP else 1

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return self._struct.size

    def place(self, name: str) -> int:
        """Where the numbers have a field: the address, if it is that of a tensor."""
        return self._places[name][0]

    def pack(self, numbers: Sequence[int]) -> bytes:
        """The struct with these numbers."""
        # All at once: setting the fields of a ctypes structure takes as long as a small kernel.
        return self._struct.pack(*numbers)

    def numbers(self, values: Mapping[str, int | Tensor | Maps | None]) -> list[int]:
        """Those of the struct with these values by name, and zero for every other field.

        A tensor gives a map or an address, and maps give a map.

        Raises:
            KeyError: There is no field of a name.
        """
        packed = [0] * self._length
        for name, value in values.items():
            place, is_map = self._places[name]
            if value is None:
                continue
            if isinstance(value, int):
                packed[place] = value
            elif is_map:
                numbers = (value.data_ptr(), _TYPES[value.dtype], *value.stride())
                packed[place : place + _MAP_LENGTH] = numbers
            else:
                packed[place] = value.data_ptr()
        return packed


_WINDOW = (
    ("i", "backward type reflect threads"),
    ("q", "batch heads depth height width kernel stride dilation"),
)
# By operator, in the order of the header.
STRUCTS = {
    "attention": Layout(
        *_WINDOW,
        (_MAP, "q k v position out lse grad grad_q grad_k grad_v alpha offset"),
        ("q", "add"),
        ("P", "grad_alpha"),
    ),
    "aggregation": Layout(*_WINDOW, (_MAP, "v w out grad grad_v grad_w")),
    "difference": Layout(*_WINDOW, (_MAP, "a b out grad grad_a grad_b")),
    "convolution": Layout(
        ("i", "backward type threads ones add"),
        ("q", "batch maps split taps outs depth height width kernel stride band"),
        ("P", "layer kernels"),
        (_MAP, "input rest out grad grad_input grad_rest"),
        ("P", "grad_layer grad_kernels"),
    ),
    "folding": Layout(
        ("i", "backward type threads"),
        ("q", "outs taps maps area depth map_step tap_step summands"),
        ("P", "layer kernels scale folded grad_folded grad_layer grad_kernels"),
    ),
    "windows": Layout(
        ("i", "backward type threads"),
        ("q", "batch heads depth height width window_height window_width"),
        ("P", "bias mask"),
        (_MAP, "q k v out grad grad_q grad_k grad_v"),
        ("P", "grad_logits"),
    ),
}

# Settings and tensors of a call, by name.
Tensors = Mapping[str, Tensor | Maps | None]
Call = tuple[Mapping[str, int], Tensors]
Calls = Mapping[str, Call | None]


def window(
    shape: Sequence[int],
    kernel_size: int,
    stride: int,
    dilation: int,
    *,
    reflect: bool,
    backward: bool = False,
) -> dict[str, int]:
    """Settings of an operator on windows.

    Args:
        shape: Batch, heads, channels of a head, height and width of the map with the windows.
        kernel_size: Side of the window.
        stride: Of the queries.
        dilation: Between neighbours of a window.
        reflect: Whether borders reflect; else they read as zero, or are cut from the softmax.
        backward: Whether to run the backward pass.
    """
    batch, heads, depth, height, width = shape
    return dict(
        backward=backward,
        reflect=reflect,
        batch=batch,
        heads=heads,
        depth=depth,
        height=height,
        width=width,
        kernel=kernel_size,
        stride=stride,
        dilation=dilation,
    )


class Library:
    """One loaded library.

    Attributes:
        path: The file.
        isa: The variant in use, one of ``ISAS``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._c = ctypes.CDLL(str(path))
        self._check_abi()
        self._c.acmix_set_pool.argtypes = [ctypes.c_void_p]
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
        operator: str,
        settings: Mapping[str, int],
        tensors: Tensors,
        *,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Run an operator.

        Args:
            operator: A key of ``STRUCTS``.
            settings: The numbers of its struct: those of ``window``, or of the struct itself.
            tensors: Its maps, all (batch, head, channel, row, column) in any strides that the
                header allows, and its other pointers, contiguous; ``None`` for what is absent.
            threads: Upper bound; torch's number of threads if ``None``.
            isa: Variant; the best of this machine if ``None``.

        Raises:
            MemoryError: No memory for the scratch.
        """
        self._call(operator, {operator: (settings, tensors)}, threads, isa)

    def _call(
        self,
        function: str,
        calls: Mapping[str, Call],
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        numbers = numbers_of(calls, threads)
        structs = [STRUCTS[name].pack(values) for name, values in numbers.items()]
        self.enter(self.function(function), structs, isa or self.isa)

    def function(self, name: str) -> Callable[..., int]:
        """A function of the header."""
        return getattr(self._c, f"acmix_{name}")

    def enter(
        self, function: Callable[..., int], structs: Sequence[bytes | None], isa: str
    ) -> None:
        """Call a function of the header with its structs; raises as ``run`` does."""
        status = function(*structs, ISAS.index(isa))
        if status == -1:
            raise MemoryError(
                f"no memory for the scratch of a CPU kernel ({function.__name__}): use fewer "
                "threads, or a smaller window or map"
            )
        if status:
            raise OSError(f"{self.path} has no {isa} variant: rebuild it")

    def _check_abi(self) -> None:
        """Refuse a library whose structs are not those of this file."""
        remedy = "delete it and run python -m acmix.backends.cpu.build"
        # Libraries of before there was a version lack the function.
        version = getattr(self._c, "acmix_abi_version", lambda: 1)()
        if version != ABI_VERSION:
            raise OSError(
                f"{self.path} has version {version} of the interface, this acmix has "
                f"{ABI_VERSION}: {remedy}"
            )
        self._c.acmix_struct_size.restype = ctypes.c_int64
        for index, (operator, layout) in enumerate(STRUCTS.items()):
            theirs, ours = self._c.acmix_struct_size(index), layout.size
            if theirs != ours:
                raise OSError(
                    f"{self.path}: the struct of {operator} has {theirs} bytes, in this acmix "
                    f"{ours}: {remedy}"
                )


def numbers_of(calls: Mapping[str, Call], threads: int | None = None) -> dict[str, list[int]]:
    """The numbers of the structs of calls of one dtype, by operator."""
    threads = threads or torch.get_num_threads()
    dtypes = {x.dtype for _, xs in calls.values() for x in xs.values() if x is not None}
    # Maps of bfloat16 are computed in float32, of which there is the log-sum-exp or a weight.
    (dtype,) = dtypes - {torch.bfloat16}
    common = {"type": _TYPES[dtype], "threads": threads}
    return {
        operator: STRUCTS[operator].numbers({**settings, **tensors, **common})
        for operator, (settings, tensors) in calls.items()
    }


class Prepared:
    """A call of which all but the addresses is known, for tensors of the same kinds.

    Finding shapes, strides and settings takes as long as a small kernel.

    Args:
        library: The library.
        function: Of the header, such as ``"paths"``: folding, convolution and attention forward by
            threads that share the work.
        calls: By operator in the order of the function's arguments, of one dtype.
        tensors: Those whose memory the calls read and write, each once, or ``None``.
    """

    def __init__(
        self,
        library: Library,
        function: str,
        calls: Calls,
        tensors: Sequence[Tensor | None],
    ) -> None:
        self._library, self._function = library, library.function(function)
        numbers = numbers_of({name: call for name, call in calls.items() if call is not None})
        order = {id(x): index for index, x in enumerate(tensors)}
        # Of each struct: itself, its numbers, and which of them is the address of which tensor.
        self._structs: list[tuple[Layout, list[int], list[tuple[int, int, int]]] | None] = []
        for name, call in calls.items():
            if call is None:
                self._structs.append(None)
                continue
            layout, places = STRUCTS[name], []
            for field, value in call[1].items():
                if value is not None:
                    owner = value.tensor if isinstance(value, Maps) else value
                    shift = value.data_ptr() - owner.data_ptr()
                    places.append((layout.place(field), order[id(owner)], shift))
            self._structs.append((layout, numbers[name], places))

    def run(self, tensors: Sequence[Tensor | None]) -> None:
        """Run it on other tensors, in the order of those that it was prepared with."""
        addresses = [0 if x is None else x.data_ptr() for x in tensors]
        structs = [x if x is None else _packed(*x, addresses) for x in self._structs]
        self._library.enter(self._function, structs, self._library.isa)


def _packed(
    layout: Layout,
    numbers: Sequence[int],
    places: Sequence[tuple[int, int, int]],
    addresses: Sequence[int],
) -> bytes:
    filled = [*numbers]
    for place, index, shift in places:
        filled[place] = addresses[index] + shift
    return layout.pack(filled)


def load() -> Library:
    """The library of this process, built first where need be.

    Raises:
        OSError: The file can't be loaded.
        acmix.backends.cpu.build.BuildError: It can't be built.
    """
    found, problem = _load_once()
    if found is None:
        raise problem or OSError("the CPU library is missing")
    return found


def problem() -> str | None:
    """Why there is no library, or ``None`` when there is one. Tries once per process."""
    error = _load_once()[1]
    return None if error is None else str(error)


def _load_once() -> tuple[Library | None, Exception | None]:
    global _loaded
    if _loaded is None:
        with _lock:
            _loaded = _loaded or _load()
    return _loaded


def _load() -> tuple[Library | None, Exception | None]:
    if os.environ.get("ACMIX_CPU_KERNELS") == "0":
        return None, OSError("turned off by ACMIX_CPU_KERNELS=0")
    try:
        return Library(_find()), None
    except (OSError, AttributeError, build.BuildError) as error:
        # Once a process, since this result is kept: the kernels of torch serve, but slower.
        _logger.warning("the compiled CPU kernels are not used: %s", error)
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
    return cache.checked_library(cached, lambda: build.build(cached, compiler))


def _openmp_pool() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch loaded, where there is one."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    names = ("libgomp", "libomp", "libiomp")
    paths = {line.split(maxsplit=5)[-1] for line in maps if "/" in line}
    libraries = [path for path in paths if Path(path).name.startswith(names)]
    for path in sorted(libraries, key=lambda path: "torch" not in path):
        try:
            entry = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value
    return None
