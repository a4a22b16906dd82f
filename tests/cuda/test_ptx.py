"""The PTX that NVRTC makes of the kernels, run instruction by instruction."""

import functools

import pytest
import torch

from cuda_emulator.device import emulated_device
from cuda_emulator.ptx import PtxRuntime
from operators import Aggregation, Attention, Case, Convolution, Difference, Paths

DTYPES = [
    torch.float16,
    pytest.param(torch.float32, marks=pytest.mark.slow),
    pytest.param(torch.bfloat16, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _interpreted(compiler):
    with emulated_device(PtxRuntime(functools.cache(compiler.compile_ptx))):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case((6, 9), 3, batch=1, heads=2, depth=3),
        Case((2, 1), 3, batch=1, heads=2, depth=3),
        Case((5, 7), 3, stride=2, dilation=2, batch=1, heads=1, depth=3),
    ],
    ids=["tiles", "tiles cut to the image", "any window"],
)
def test_attention(dtype, case):
    Attention().check_budget(case, "cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("operator", [Aggregation(), Difference()], ids=lambda kind: kind.name)
def test_neighbourhood(operator, dtype, kernel_size):
    case = Case((5, 7), kernel_size, stride=2, batch=1, heads=2, depth=3)
    operator.check_budget(case, "cuda", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case((5, 7), batch=1, heads=2, depth=2),
        Case((5, 6), stride=2, batch=1, heads=5, depth=1),
        Case((5, 6), stride=3, batch=1, heads=5, depth=1),
    ],
    ids=["folded", "layer", "any window"],
)
def test_convolution(dtype, case):
    Convolution().check_budget(case, "cuda", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_paths(dtype):
    Paths().check_budget(Case((5, 6), 3, batch=2, heads=1, depth=2), "cuda", dtype)
