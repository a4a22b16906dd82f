"""How an operator is defined, and how a backend gives it a kernel."""

from collections.abc import Callable

import torch
from torch._ops import OpOverload

WINDOW = "int kernel_size, int stride, int dilation"

_library = torch.library.Library("acmix", "DEF")


def define(
    schema: str,
    fake: Callable,
    backward: Callable | None = None,
    setup: Callable | None = None,
) -> OpOverload:
    """Define ``acmix::<name>`` and return it.

    Args:
        schema: Name, arguments and results, as torch writes them.
        fake: Empty results with the shapes, dtypes and strides that every kernel returns.
        backward: Gradient, as ``torch.library.register_autograd`` takes it. An operator without
            one is itself a gradient, and refuses to be differentiated.
        setup: What the gradient keeps of a call.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"acmix::{name}", fake, lib=_library)
    torch.library.register_autograd(
        f"acmix::{name}", backward or _refuse, setup_context=setup, lib=_library
    )
    return getattr(torch.ops.acmix, name).default


def kernel(op: OpOverload, device: str) -> Callable[[Callable], Callable]:
    """Decorator: the function, with the arguments of ``op``, runs it on ``"CPU"`` or ``"CUDA"``."""

    def register(function: Callable) -> Callable:
        _library.impl(op, function, device)
        return function

    return register


def _refuse(ctx, *grads):
    raise RuntimeError(
        "acmix kernels have first derivatives only: use backend='torch' or 'reference' to "
        "differentiate a gradient"
    )
