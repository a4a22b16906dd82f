"""A CUDA device that is not there: tensors of the CPU whose operators run the CUDA kernels.

Only the place of the tensors is pretended. Choice of the backend, schema, fake, gradient and
registered kernel are those of a real device.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode

from acmix import layout
from acmix.backends import cpu, cuda
from acmix.backends.cuda import launcher

_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class _OnDevice(TorchDispatchMode):
    """Calls of our operators, below their gradients, go to the kernels for CUDA."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # What is traced, without values, has modes of its own that come after this one.
        traced = any(isinstance(x, FakeTensor | FunctionalTensor) for x in args)
        if func.namespace == "acmix" and not traced:
            return func.redispatch(_CUDA, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def emulated_device(runtime):
    """Take all tensors for those of a CUDA device, and ``runtime`` for CuPy's."""
    of_cuda, of_cpu = cuda.why_not, cpu.why_not

    def on_device(x):
        return SimpleNamespace(dtype=x.dtype, device=torch.device("cuda"))

    with pytest.MonkeyPatch.context() as patch, _OnDevice():
        patch.setattr(launcher, "runtime", runtime)
        patch.setattr(cuda, "_has_cupy", lambda: True)
        patch.setattr(cuda, "why_not", lambda op, x: of_cuda(op, on_device(x)))
        patch.setattr(cpu, "why_not", lambda op, x: of_cpu(op, on_device(x)))
        patch.setattr(layout, "is_channels_last", lambda x: False)
        yield
