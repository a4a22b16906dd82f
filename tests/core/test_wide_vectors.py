"""The CPU kernels in the sizes of AVX-512, on machines without it: all but its own instructions."""

import platform

import pytest
import torch

from acmix.backends.cpu import build, library
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


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A library of one variant with vectors of 64 bytes."""
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", [*build._FLAGS, "-O1", "-DACMIX_WIDE"])
        # Of a machine whose compiler's own choice is the only variant.
        patch.setattr(platform, "machine", lambda: "any")
        path = build.build(tmp_path_factory.mktemp("wide") / "libacmix_cpu.so", compiler)
        patch.delenv("ACMIX_CPU_ISA", raising=False)
        loaded = library.Library(path)
    assert loaded.isa == "baseline"
    return loaded


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_vectors_of_64_bytes_match_the_reference(operator, wide, monkeypatch):
    monkeypatch.setattr(library, "load", lambda: wide)
    for case in (*(operator.cases | operator.others).values(), *CpuContract.vectors):
        operator.check(case, "cpu")
    for case in CpuContract.vectors:
        operator.check_budget(case, "cpu", torch.float32)
        operator.check_budget(case, "cpu", torch.bfloat16)
