"""Sliding window attention."""

import pytest
import torch

import acmix
from operator_contract import CpuContract
from operators import Attention, Case


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
