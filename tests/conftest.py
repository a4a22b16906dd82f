"""Fixtures for all tests."""

import pytest
import torch

pytest.register_assert_rewrite("operators", "operator_contract", "layer_contract")


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Slow tests come first: at the end, no process is left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
