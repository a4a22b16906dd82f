"""Derivatives that a call may be asked for: compiled and fused kernels have first ones alone."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from acmix.tracing import constant_when_compiled


# Dynamo enters the transforms that it traces, but takes their stack for an object even where there
# is none: it has to ask as this runs.
@constant_when_compiled
def is_transformed() -> bool:
    """Whether a call is inside ``grad``, ``vmap`` and their like of torch.func, or forward mode."""
    transform = torch._C._functorch.peek_interpreter_stack()
    return transform is not None or forward_ad._current_level >= 0


def transformed() -> list[str]:
    """That a call is inside a transform, if so."""
    return ["transforms of torch.func need backend='torch'"] if is_transformed() else []


def attention_for(backend: str | None, x: Tensor) -> AbstractContextManager[object]:
    """Context in which torch's attention has the derivatives that a call may be asked for.

    Those of every order, in operators that keep all weights, inside a transform, and for a gradient
    where plain operators are asked for by name.

    Args:
        backend: Backend that the caller named.
        x: An input of the attention.
    """
    written_down = torch.compiler.is_compiling() or torch.jit.is_tracing()
    plain = backend in ("torch", "reference") and torch.is_grad_enabled() and x.requires_grad
    if not written_down and (plain or is_transformed()):
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
