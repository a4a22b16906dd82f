"""Runs these tests where detection and segmentation are installed; small data for them."""

from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

from shapes import write_ade, write_coco, write_masks


def _absent() -> str | None:
    try:
        import mmcv.ops  # noqa: F401
        import mmdet  # noqa: F401
        import mmseg  # noqa: F401
    except ImportError as error:
        return f"{error}: 'make mmcv' installs what detection and segmentation need"
    return None


def pytest_collection_modifyitems(items):
    """Mark every test of this folder, slow ones all, and skip it where something is missing."""
    reason = _absent()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.downstream)
            item.add_marker(pytest.mark.slow)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def scope_of_its_own():
    """A runner leaves its library's scope behind, where tests of others would search."""
    with DefaultScope.overwrite_default_scope("mmengine"):
        yield


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Six images under the names of COCO's classes."""
    from mmdet.datasets import CocoDataset

    return write_coco(tmp_path_factory.mktemp("data") / "coco", 6, CocoDataset.METAINFO["classes"])


@pytest.fixture(scope="session")
def ade(tmp_path_factory):
    """Six images with the first three of ADE20K's classes."""
    return write_ade(tmp_path_factory.mktemp("data") / "ade", 6)


@pytest.fixture(scope="session")
def own_coco(tmp_path_factory):
    """Six images with the two categories of the examples for one's own data."""
    root = tmp_path_factory.mktemp("data") / "own"
    return write_coco(root, 6, ("square", "disc"), names=("train", "val"))


@pytest.fixture(scope="session")
def own_masks(tmp_path_factory):
    """Six images with the three classes of the examples for one's own data."""
    return write_masks(tmp_path_factory.mktemp("data") / "own", 6)
