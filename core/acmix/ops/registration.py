"""How an operator is defined, and how a backend gives it a kernel."""

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry, register_flop_formula

from acmix.tracing import PLAIN_TENSORS, is_watched

Shape = Sequence[int]

# Types of the arguments of a call that may go to its kernel at once.
_PLAIN = PLAIN_TENSORS | {NoneType, int, bool}
_kernels: dict[tuple[OpOverload, str], Callable] = {}

WINDOW = "int kernel_size, int stride, int dilation"

_library = torch.library.Library("acmix", "DEF")


def define(
    schema: str,
    fake: Callable,
    backward: Callable | None = None,
    setup: Callable | None = None,
    *,
    multiply_adds: Callable[..., int],
) -> OpOverload:
    """Define ``acmix::<name>`` and return it.

    Args:
        schema: Name, arguments and results, as torch writes them.
        fake: Empty results with the shapes, dtypes and strides that every kernel returns.
        backward: Gradient, as ``torch.library.register_autograd`` takes it. An operator without
            one is itself a gradient, and refuses to be differentiated.
        setup: What the gradient keeps of a call.
        multiply_adds: Of a call with tensors of the shapes given in their place, for
            ``torch.utils.flop_counter``. They are those of the layers' own ``multiply_adds``.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"acmix::{name}", fake, lib=_library)
    torch.library.register_autograd(
        f"acmix::{name}", backward or _refuse, setup_context=setup, lib=_library
    )
    operator = getattr(torch.ops.acmix, name)
    if operator not in flop_registry:  # As it is when this module is imported anew.
        register_flop_formula(operator)(_flops(multiply_adds))
    return operator.default


def kernel(op: OpOverload, device: str) -> Callable[[Callable], Callable]:
    """Decorator: the function, with the arguments of ``op``, runs it on ``"CPU"`` or ``"CUDA"``."""

    def register(function: Callable) -> Callable:
        _library.impl(op, function, device)
        _kernels[op, device.lower()] = function
        return function

    return register


def call(op: OpOverload, x: Tensor, *args: Any) -> Any:
    """``op(x, *args)``: by its kernel at once where nobody could tell.

    Torch's dispatcher takes as long as the kernel of a small map.
    """
    if is_watched() or not {type(arg) for arg in args} | {type(x)} <= _PLAIN:
        return op(x, *args)
    kernel = _kernels.get((op, x.device.type))
    return (kernel or op)(x, *args)


def _flops(multiply_adds: Callable[..., int]) -> Callable[..., int]:
    """The formula of an operator in torch's unit: two for each multiply-add."""

    def formula(*args: Any, out_shape: object = None) -> int:
        return 2 * multiply_adds(*args)

    return formula


def _refuse(ctx, *grads):
    raise RuntimeError(
        "acmix kernels have first derivatives only: use backend='torch' or 'reference' to "
        "differentiate a gradient"
    )
