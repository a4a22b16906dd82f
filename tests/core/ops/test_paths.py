"""Both paths on one set of projections."""

import acmix
from operator_contract import SMALL, CpuContract, needs_kernels
from operators import Case, Paths


class TestPaths(CpuContract):
    operator = Paths()
    sizes = {
        "folded": Case((13, 11), stride=2, heads=4, depth=16),
        "layer": Case((13, 11), heads=6, depth=8),
    }
    registrations = {"folded": SMALL, "layer": Case((5, 6), 3, stride=2, heads=5, depth=2)}


@needs_kernels
def test_one_operator_gives_both():
    inputs = [x.requires_grad_() for x in Paths().inputs(SMALL)]
    attention, convolution = acmix.sliding_window_paths(*inputs, kernel_size=3, backend="cpu")
    assert attention.grad_fn is not None
    assert attention.grad_fn is convolution.grad_fn
