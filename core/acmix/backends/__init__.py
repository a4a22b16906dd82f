"""Backends: who runs an operator. Each says whether it can run a call and, if not, why.

To add one, write a module or package with the operators it has, named as in ``acmix.functional``,
and a function ``why_not(op, x)`` that returns the reasons against running ``op`` on a tensor like
``x`` (none: it can). Compiled kernels register with the operators of ``acmix.ops`` when the module
is loaded. Then list it in ``BACKENDS``, fastest first. No backend imports another.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch as _torch

from acmix.backends import cpu, cuda, reference, torch
from acmix.checks import check_choice
from acmix.errors import BackendError
from acmix.tracing import is_written_down

BACKENDS: dict[str, ModuleType] = {
    "cuda": cuda,
    "cpu": cpu,
    "torch": torch,
    "reference": reference,
}


def choose(op: str, backend: str | None, x: _torch.Tensor) -> Callable[..., Any]:
    """The function that runs ``op`` on tensors like ``x``.

    A named backend is obeyed or refused with its reasons; ``None`` takes the first that can run.
    """
    refused = []
    for name in _candidates(backend):
        reasons = _why_not(name, op, x)
        if not reasons:
            return getattr(BACKENDS[name], op)
        refused.append(f"{name}: {'; '.join(reasons)}")
    raise BackendError(f"no backend can run {op} ({' | '.join(refused)})")


def find_joint(op: str, backend: str | None, x: _torch.Tensor) -> Callable[..., Any] | None:
    """The function that runs the joint operator ``op`` on tensors like ``x``, where there is one.

    A backend may do several operators of ``acmix.functional`` in one pass; ``None`` says that they
    are to be called one by one.
    """
    for name in _candidates(backend):
        if hasattr(BACKENDS[name], op) and not _why_not(name, op, x):
            return getattr(BACKENDS[name], op)
    return None


def _candidates(backend: str | None) -> list[str]:
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
        return [backend]
    return list(BACKENDS)


def _why_not(name: str, op: str, x: _torch.Tensor) -> list[str]:
    """Reasons against running ``op`` on tensors like ``x`` by this backend."""
    # Exported programs and traces run where acmix is not installed, and at other sizes.
    if is_written_down() and name != "torch":
        return ["exported programs and traces take the plain operators of backend='torch'"]
    return BACKENDS[name].why_not(op, x)
