"""Sliding window attention."""

import pytest
import torch

import acmix
from operator_contract import CpuContract, needs_kernels
from operators import Attention, Case
from support import gradients


class TestAttention(CpuContract):
    operator = Attention()


def test_only_differences_of_the_position_count():
    q, k, v, position = Attention().inputs(Case((9, 9), heads=2, depth=4))
    moved = position + torch.randn(4, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        acmix.sliding_window_attention(q, k, v, moved),
        acmix.sliding_window_attention(q, k, v, position),
    )


def test_window_on_a_small_map_is_attention_to_all_of_it():
    q, k, v, _ = Attention().inputs(Case((3, 3), heads=2, depth=4))
    weights = (q.flatten(3).transpose(2, 3) @ k.flatten(3) / 2).softmax(dim=-1)
    expected = (v.flatten(3) @ weights.transpose(2, 3)).unflatten(-1, (3, 3))
    torch.testing.assert_close(acmix.sliding_window_attention(q, k, v), expected)


@pytest.mark.parametrize("backend", [None, "torch"])
def test_huge_window(backend):
    case = Case((5, 7), 101, dilation=3, batch=1, heads=1, depth=2)
    inputs = Attention().inputs(case)
    actual, expected = Attention().on(case, backend), Attention().reference_on(case)
    torch.testing.assert_close(actual(*inputs), expected(*inputs))


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_kernels), "torch"])
@pytest.mark.parametrize(
    ("size", "dilation"), [((28, 28), 1), ((10, 25), 4)], ids=["within", "cut"]
)
@pytest.mark.parametrize("argument", [0, 1, 2], ids=["q", "k", "v"])
def test_what_is_not_a_number_and_its_gradient(argument, size, dilation, backend):
    case = Case(size, dilation=dilation, batch=1, heads=2, depth=4)
    inputs = Attention().inputs(case)
    inputs[argument][0, 0, 1, 5, 14] = float("nan")
    actual = gradients(Attention().on(case, backend), *inputs)
    expected = gradients(Attention().reference_on(case), *inputs)
    assert 0 < expected[0].isnan().sum() < expected[0].numel()
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize(
    "backend", [pytest.param("cpu", marks=needs_kernels), "torch", "reference"]
)
@pytest.mark.parametrize("argument", [1, 2], ids=["k", "v"])
def test_not_a_number_reaches_the_queries_whose_window_has_it(argument, backend):
    case = Case((28, 28), batch=1, heads=2, depth=4)
    inputs = Attention().inputs(case)
    inputs[argument][0, 0, 1, 14, 14] = float("nan")
    out = Attention().on(case, backend)(*inputs)
    expected = torch.zeros(2, 28, 28, dtype=torch.bool)
    expected[0, 11:18, 11:18] = True
    assert torch.equal(out[0].isnan().any(dim=1), expected)
