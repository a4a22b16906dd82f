import importlib.util

import pytest
import torch

import cuda_emulator
from acmix.cuda import launcher
from support import ROOT


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")


@pytest.fixture(scope="session", autouse=True)
def uninitialised_memory_is_nan():
    """What a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def emulate(monkeypatch):
    """Run the kernels on the CPU; the options are those of ``EmulatedRuntime``."""
    reason = cuda_emulator.why_not()
    if reason:
        pytest.skip(reason)

    def start(**options):
        monkeypatch.setattr(launcher, "runtime", cuda_emulator.EmulatedRuntime(**options))

    return start


@pytest.fixture
def emulated(emulate):
    emulate()


@pytest.fixture(scope="session")
def compiler():
    """``ci/compile_cuda.py`` as a module."""
    path = ROOT / "ci" / "compile_cuda.py"
    spec = importlib.util.spec_from_file_location("compile_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reason = module.why_not()
    if reason:
        pytest.skip(reason)
    return module
