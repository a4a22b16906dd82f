"""Calls that are written down, by an exporter or a tracer, and the sizes that they leave open."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import SymInt, Tensor
from torch.nn import Parameter

Size = int | SymInt | Tensor
# Tensors that have their values themselves: those of a subclass are elsewhere or nowhere.
PLAIN_TENSORS = frozenset({Tensor, Parameter})
Answer = TypeVar("Answer", bound=Callable[[], Any])


def constant_when_compiled(function: Answer) -> Answer:
    """Decorator: Dynamo calls the function as it compiles, and takes the result for a constant.

    It is ``torch.compiler.assume_constant_result`` without the import of Dynamo, which takes as
    long as that of torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# Asked as it runs: Dynamo of torch 2.9 takes whatever it compiles for an export.
@constant_when_compiled
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


def is_written_down() -> bool:
    """Whether operators are recorded: by ``torch.export``, ``torch.jit.trace`` or for ONNX.

    The record serves other inputs later, and runs where acmix is not installed.
    """
    return _is_exporting() or torch.jit.is_tracing()


def is_watched() -> bool:
    """Whether anything but its result may matter to whoever makes a call.

    A graph of gradients, a compiler or tracer, a mode, a transform or a profiler has to see the
    operators of torch themselves.
    """
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd._profiler_enabled()
    )


def is_known(*sizes: Size) -> bool:
    """Whether code may branch on these sizes, since they are the same whenever it runs again.

    Sizes that ``torch.export`` leaves open are symbols and those of a trace are tensors: a branch
    on them would serve the example's size alone. A compiled call may branch on its symbols: it has
    guards, and is compiled anew.
    """
    if _is_exporting():
        # Imported here since it takes a second.
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return all(has_static_value(cast(SymInt, size)) for size in sizes)
    return not torch.jit.is_tracing() or not any(isinstance(size, Tensor) for size in sizes)


def at_least(size: Size, least: int) -> Size:
    """The larger of a size and a number."""
    if isinstance(size, Tensor):
        return size.clamp(min=least)
    # Dynamo of torch 2.9 knows the built-in function alone.
    return max(size, least) if isinstance(size, int) else torch.sym_max(size, least)


def as_number(size: Size) -> int:
    """A size of the example where it is traced, without the tracer's warning.

    For what a trace can't leave open: checks, and sizes of parameters.
    """
    if not isinstance(size, Tensor):
        return cast(int, size)  # A symbol stays one, and counts as an integer.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(size)


def unflatten(x: Tensor, dim: int, sizes: Sequence[Size]) -> Tensor:
    """``x.unflatten(dim, sizes)``, for a result whose shape is read.

    The ONNX exporter of traces takes the shape that an unflatten has in the example for fixed.
    """
    if not torch.jit.is_tracing():
        return x.unflatten(dim, sizes)
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def addcmul(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``x + a * b``; the ONNX exporter of traces makes ``torch.addcmul`` of halves a float."""
    return x + a * b if torch.jit.is_tracing() else torch.addcmul(x, a, b)
