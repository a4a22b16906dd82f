"""Differences of a pixel and its neighbourhood."""

import torch

import acmix
from operator_contract import CpuContract
from operators import Case, Difference


class TestDifference(CpuContract):
    operator = Difference()


def test_neighbours_are_those_of_the_map_itself_unless_given():
    a, _ = Difference().inputs(Case((6, 5)))
    one = acmix.neighbourhood_difference(a, kernel_size=3)
    assert torch.equal(one, acmix.neighbourhood_difference(a, a, kernel_size=3))
