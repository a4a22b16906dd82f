"""The PTX that NVRTC makes of the kernels, run instruction by instruction."""

import functools

import pytest
import torch

from acmix.cuda import launcher
from cuda_emulator.operators import (
    aggregation,
    aggregation_maps,
    attention,
    maps,
    plain_aggregation,
    plain_attention,
    plain_subtraction,
    subtraction,
)
from cuda_emulator.ptx import PtxRuntime
from support import assert_within_error_budget

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _interpreted(compiler, monkeypatch):
    monkeypatch.setattr(launcher, "runtime", PtxRuntime(functools.cache(compiler.compile_ptx)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 9), (3, 2)])
def test_tiled_attention(dtype, size):
    inputs = maps(*[(1, 2, 3, *size)] * 3)
    options = dict(kernel_size=3 if min(size) > 3 else 5)
    assert_within_error_budget(attention, plain_attention, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_attention(dtype):
    inputs = maps(*[(1, 1, 3, 5, 7)] * 3)
    options = dict(kernel_size=3, stride=2, dilation=2)
    assert_within_error_budget(attention, plain_attention, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_aggregation(dtype, kernel_size):
    inputs = aggregation_maps(1, 5, 2, (5, 7), kernel_size, 2)
    options = dict(kernel_size=kernel_size, stride=2)
    assert_within_error_budget(aggregation, plain_aggregation, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_subtraction(dtype, kernel_size):
    inputs = maps(*[(1, 2, 5, 7)] * 2)
    options = dict(kernel_size=kernel_size, stride=2)
    assert_within_error_budget(subtraction, plain_subtraction, inputs, dtype, options)
