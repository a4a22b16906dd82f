"""Fixtures for all tests."""

import gc
import os

import pytest
import torch

import metafiles

metafiles.read_once()
pytest.register_assert_rewrite("operators", "operator_contract", "layer_contract")


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)


def pytest_addoption(parser):
    """``--thorough``: also what takes a minute a test."""
    parser.addoption("--thorough", action="store_true", help="also run tests marked thorough")


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One for each processor, and one more for while slow tests wait for what they started."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return here + ("not slow" not in config.option.markexpr)


def pytest_collection_modifyitems(config, items):
    """Slow tests come first: at the end, no process is left alone with one."""
    if not config.getoption("--thorough"):
        skip = pytest.mark.skip(reason="takes minutes; run it with 'make test ARGS=--thorough'")
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(skip)
    items[:] = _parts(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))


def _parts(items, count):
    """The tests in so many equal parts, which processes start with, the slow ones first in each.

    Those of a file stay together, for what they share, and files are dealt out in turn.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    turn = {path: i % count for i, path in enumerate(dict.fromkeys(item.path for item in slow))}
    ordered = []
    for part in range(count):
        ordered += (item for item in slow if turn[item.path] == part)
        more = len(items) * (part + 1) // count - len(ordered)
        ordered += fast[: max(more, 0)]
        fast = fast[max(more, 0) :]
    return ordered + fast


def pytest_collection_finish(session):
    """What was imported stays: a collection of garbage, as data sets start one, is short then."""
    gc.collect()
    gc.freeze()
