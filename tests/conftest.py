"""Fixtures for all tests."""

import pytest
import torch

pytest.register_assert_rewrite("operators", "operator_contract", "layer_contract")


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)
