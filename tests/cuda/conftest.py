import importlib.util
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import cuda_emulator
from acmix.backends import cuda
from cuda_emulator.device import emulated_device
from support import ROOT

# Of the contract of operators: tests of many calls, which the emulator takes seconds for.
SLOW = ("test_gradcheck", "test_matches_reference_on_any_shape", "test_window_beyond_the_map")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.originalname in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """What a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def emulate():
    """Run the kernels on the CPU; the options are those of ``EmulatedRuntime``."""
    reason = cuda_emulator.why_not()
    if reason:
        pytest.skip(reason)
    with ExitStack() as stack:

        def start(**options):
            stack.close()
            stack.enter_context(emulated_device(cuda_emulator.EmulatedRuntime(**options)))

        yield start


@pytest.fixture
def emulated(emulate):
    emulate()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where tensors have to be: on a CUDA device, or on the CPU that stands in for one."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return torch.device("cpu")
    reasons = cuda.why_not("sliding_window_attention", torch.zeros(1, device="cuda"))
    if reasons:
        pytest.skip("; ".join(reasons))
    return torch.device("cuda")


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
