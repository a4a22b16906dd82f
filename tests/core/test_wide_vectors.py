"""The CPU kernels in the sizes of AVX-512, on machines without it: all but its own instructions."""

import pytest
import torch

from acmix.backends.cpu import library
from operator_contract import CpuContract
from operators import (
    Aggregation,
    Attention,
    Convolution,
    MapWindowAttention,
    Mix,
    SplitConvolution,
)

OPERATORS = [
    Attention(),
    Aggregation(),
    Convolution(),
    SplitConvolution(),
    Mix(),
    MapWindowAttention(),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(library.problem()), reason="the CPU kernels can't be built here"),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_vectors_of_64_bytes_match_the_reference(operator, wide, monkeypatch):
    monkeypatch.setattr(library, "load", lambda: wide)
    for case in (*(operator.cases | operator.others).values(), *CpuContract.vectors):
        operator.check(case, "cpu")
    for case in CpuContract.vectors:
        operator.check_budget(case, "cpu", torch.float32)
        operator.check_budget(case, "cpu", torch.bfloat16)
