"""The one place that launches CUDA kernels, through CuPy on torch's memory and stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy
import torch
from torch import Tensor

from acmix.backends.cuda.sources import COMPILE_OPTIONS, source
from acmix.checks import require

_MAX_GRID = 2**31 - 1


class CupyRuntime:
    """Compiles and calls kernels on the device of a tensor; the tests put another in its place."""

    @contextmanager
    def on(self, tensor: Tensor) -> Iterator[None]:
        """Make the tensor's device and torch's current stream there CuPy's current ones."""
        import cupy

        index = tensor.device.index
        stream = torch.cuda.current_stream(index)
        # The stream protocol is CuPy 14's; before it, and before torch had it, take the pointer.
        if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
            stream = cupy.cuda.Stream.from_external(stream)
        else:
            stream = cupy.cuda.ExternalStream(stream.cuda_stream, index)
        with torch.cuda.device(index), cupy.cuda.Device(index), stream:
            yield

    def module(self, stem: str, name: str, tensor: Tensor):
        """The compiled module of a source that holds the instantiation ``name``."""
        return _compiled(stem, name, tensor.device.index)

    def address(self, tensor: Tensor) -> int:
        """What a kernel gets for a tensor."""
        return tensor.data_ptr()


@cache
def _compiled(stem: str, name: str, device: int):
    """One module for each instantiation: a first call compiles its own kernel, not 180.

    CuPy keeps the binaries on disk. ``device`` is part of the key alone: a module belongs to the
    context it was loaded in.
    """
    import cupy

    return cupy.RawModule(code=source(stem), options=COMPILE_OPTIONS, name_expressions=(name,))


runtime = CupyRuntime()


def launch(
    stem: str,
    name: str,
    grid: int,
    block: tuple[int, int, int],
    args: tuple[Tensor | int | float, ...],
    shared_bytes: int = 0,
) -> None:
    """Run a kernel over ``grid`` blocks on the device and stream of its first argument.

    Args:
        stem: Kernel source, without its ending.
        name: Name expression of the instantiation.
        grid: Number of blocks; with none there is nothing to do.
        block: Threads of a block.
        args: Kernel arguments, tensors first. Integers become int32 (larger ones are refused),
            floats the accumulator type of the first tensor's dtype.
        shared_bytes: Dynamic shared memory of a block.
    """
    if grid == 0:
        return
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    first = tensors[0]
    require(grid <= _MAX_GRID, "blocks", grid, f"{name} can run {_MAX_GRID}; split the batch")
    for tensor in tensors:
        _check_tensor(tensor, first)
    real = numpy.float64 if first.dtype == torch.float64 else numpy.float32
    with runtime.on(first):
        function = runtime.module(stem, name, first).get_function(name)
        # Bare Python numbers would go as 64 bits, whatever the kernel declares.
        typed = tuple(_typed(arg, real) for arg in args)
        function((grid, 1, 1), block, typed, shared_mem=shared_bytes)


def _check_tensor(tensor: Tensor, first: Tensor) -> None:
    require(tensor.device == first.device, "device", tensor.device, f"must be {first.device}")
    require(tensor.is_contiguous(), "strides", tensor.stride(), "kernels take contiguous maps")


def _typed(arg: Tensor | int | float, real: type) -> int | numpy.generic:
    if isinstance(arg, Tensor):
        return runtime.address(arg)
    if isinstance(arg, float):
        return real(arg)
    require(int(arg) < 2**31, "size", arg, "sizes and channels of the kernels must be below 2**31")
    return numpy.int32(arg)
