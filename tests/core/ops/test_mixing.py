"""Both paths on one set of projections, and their sum."""

import pytest
import torch

import acmix
from acmix import ops
from acmix.backends.cpu import mixing, plans
from operator_contract import SMALL, CpuContract, needs_kernels
from operators import Case, Mix, Recorder
from support import gradients

BY_CHANNEL = Case((13, 11), stride=2, heads=4, depth=16)


class TestMix(CpuContract):
    operator = Mix()
    sizes = {
        "folded": Case((13, 11), stride=2, heads=4, depth=16),
        "layer": Case((13, 11), heads=6, depth=8),
    }
    registrations = {
        "folded": SMALL,
        "layer": Case((5, 6), 3, stride=2, heads=5, depth=2),
        "paths alone": Case((5, 6), 3, heads=2, depth=2, without=("alpha", "beta", "offset")),
    }


def inputs_by_channel(dtype=torch.float64):
    *inputs, alpha, beta, offset = Mix().inputs(BY_CHANNEL, dtype)
    return [*inputs, alpha * torch.randn_like(offset), beta, offset]


@needs_kernels
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_alpha_by_channel(backend):
    inputs = inputs_by_channel()
    expected, grads = gradients(Mix().reference_on(BY_CHANNEL), *inputs)
    run = Mix().on(BY_CHANNEL, backend)
    with torch.no_grad():
        torch.testing.assert_close(run(*inputs), expected)
    torch.testing.assert_close(gradients(run, *inputs), (expected, grads))


@needs_kernels
def test_operator_has_no_gradient_of_alpha_by_channel():
    inputs = [x.requires_grad_() for x in inputs_by_channel()]
    message = "64 numbers has no gradient .* acmix.mixed_paths"
    with pytest.raises(NotImplementedError, match=message):
        ops.mixed(*inputs, 4, 3, 1, 1)


@needs_kernels
def test_alpha_of_nothing_has_a_gradient():
    """It is summed up from the attention itself, not from alpha times it."""
    case = Case((9, 7), 5, heads=4, depth=16)
    inputs = Mix().inputs(case)
    inputs[4] = torch.zeros_like(inputs[4])
    results = (gradients(run, *inputs) for run in (Mix().on(case, "cpu"), Mix().reference_on(case)))
    torch.testing.assert_close(*results)


@needs_kernels
def test_layer_is_one_operator_in_training():
    layer = acmix.ACmix2d(16, 32)
    with Recorder() as recorder:
        layer(torch.randn(1, 16, 9, 7)).sum().backward()
    assert [op for op, _ in recorder.calls] == [ops.mixed, ops.mixed_backward]


@needs_kernels
def test_kinds_of_calls_are_not_mixed_up():
    """Calls that are alike in all but one thing, in turn: each has a plan of its own."""
    usual = Case((9, 7), 3, heads=4, depth=16)
    others = (
        Case((7, 9), 3, heads=4, depth=16),
        Case((9, 7), 5, heads=4, depth=16),
        Case((9, 7), 3, stride=2, heads=4, depth=16),
        Case((9, 7), 3, dilation=2, heads=4, depth=16),
        Case((9, 7), 3, heads=4, depth=16, without=("alpha",)),
        Case((9, 7), 3, heads=4, depth=16, without=("beta",)),
        Case((9, 7), 3, heads=4, depth=16, without=("offset",)),
        Case((9, 7), 3, heads=4, depth=16, layout="channels_last"),
        Case((9, 7), 3, heads=4, depth=16, layout="sliced"),
    )
    with torch.no_grad():
        for case in (usual, *others, usual, *reversed(others)):
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
                inputs = Mix().inputs(case, dtype)
                actual = Mix().on(case, "cpu")(*inputs).double()
                wide = [x if x is None else x.double() for x in inputs]
                expected = Mix().reference_on(case)(*wide)
                torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@needs_kernels
def test_endless_kinds_of_calls_are_not_kept(monkeypatch):
    monkeypatch.setattr(plans, "_MOST", 4)
    with torch.no_grad():
        for side in range(3, 15):
            case = Case((side, side), 3, heads=4, depth=16, layout="channels_last")
            Mix().on(case, "cpu")(*Mix().inputs(case))
    assert len(mixing._plans._plans) <= 4
    assert len(mixing._plans._direct) <= 4
