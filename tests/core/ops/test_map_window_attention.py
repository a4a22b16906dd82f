"""Attention inside the windows of a map."""

import pytest
import torch

import acmix
from operator_contract import SMALL, CpuContract
from operators import Case, MapWindowAttention


class TestMapWindowAttention(CpuContract):
    operator = MapWindowAttention()
    sizes = {"seven": Case((13, 11), 7, heads=4, depth=16)}
    registrations = {"small": SMALL, "no mask": Case((3, 4), 3, without=("mask",), batch=1)}


@pytest.mark.parametrize("window_size", [(2, 4), (7, 7), (0, 3), (3, -3)])
def test_windows_that_do_not_divide_the_map_are_named(window_size):
    length = window_size[0] * window_size[1]
    bias = torch.zeros(2, max(length, 0), max(length, 0))
    with pytest.raises(acmix.InputError, match="window_size="):
        acmix.map_window_attention(torch.zeros(1, 6, 9, 12), bias, window_size=window_size)


def test_dropout_drops():
    qkv, bias = torch.randn(1, 4, 4, 24), torch.zeros(2, 4, 4)
    torch.manual_seed(0)
    dropped = acmix.map_window_attention(qkv, bias, window_size=(2, 2), dropout=0.5)
    assert not torch.allclose(dropped, acmix.map_window_attention(qkv, bias, window_size=(2, 2)))
