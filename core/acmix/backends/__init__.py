"""Backends: who runs an operator. Each says whether it can run a call and, if not, why.

To add one, write a module with the operators it has, named as in ``acmix.functional``, and a
function ``why_not(op, x)`` that returns the reasons against running ``op`` on a tensor like ``x``
(none: it can). Then list it in ``BACKENDS``, fastest first. No backend imports another.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from acmix.backends import cpu_backend, cuda_backend, reference_backend, torch_backend
from acmix.checks import check_choice
from acmix.errors import BackendError

BACKENDS: dict[str, ModuleType] = {
    "cuda": cuda_backend,
    "cpu": cpu_backend,
    "torch": torch_backend,
    "reference": reference_backend,
}


def choose(op: str, backend: str | None, x: Tensor) -> Callable[..., Tensor]:
    """The function that runs ``op`` on tensors like ``x``.

    A named backend is obeyed or refused with its reasons; ``None`` takes the first that can run,
    and torch in ``torch.export`` and ONNX export.
    """
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    if backend is None and torch.compiler.is_exporting():
        # An exported program runs where acmix is not installed.
        backend = "torch"
    names = list(BACKENDS) if backend is None else [backend]
    refused = []
    for name in names:
        reasons = BACKENDS[name].why_not(op, x)
        if not reasons:
            return getattr(BACKENDS[name], op)
        refused.append(f"{name}: {'; '.join(reasons)}")
    raise BackendError(f"no backend can run {op} ({' | '.join(refused)})")
