"""Weights of everyone through every loader: the logits of the network that wrote the file."""

import pytest
from mmengine.registry import DefaultScope

from acmix import CheckpointError
from support import ROOT
from weights_files import EQUAL, LOADERS, REFUSED, WRITERS, expected, table


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {}, tmp_path_factory.mktemp("files")


def file_of(writer, files):
    made, folder = files
    if writer not in made:
        made[writer] = WRITERS[writer](folder)
    return made[writer]


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_gives_its_logits_or_is_refused(writer, loader, files, tmp_path):
    file, wanted = file_of(writer, files), expected(writer, loader)
    if wanted == REFUSED:
        reason = r"plain ResNet can start|conv2|its classes or heads|bbox_head"
        with pytest.raises((CheckpointError, RuntimeError), match=reason):
            LOADERS[loader](file, tmp_path)
        return
    logits = LOADERS[loader](file, tmp_path)
    assert logits.shape == file.logits.shape
    if wanted == EQUAL:
        assert (logits - file.logits).abs().max() <= 1e-5 * max(1, file.logits.abs().max())


def test_the_page_has_this_table():
    page = (ROOT / "docs" / "weights.md").read_text()
    _, _, rest = page.partition("<!-- weights: made by `python tests/weights_files.py` -->\n")
    assert rest.startswith(table() + "\n<!-- /weights -->")
