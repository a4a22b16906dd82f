"""The report of any model with ACmix layers: whole, in one file, in numbers all readers take."""

import base64
import json
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from acmix import ACmix2d, InputError
from acmix.analysis import analyze, write_report
from acmix.analysis.curves import Curves


def network():
    torch.manual_seed(0)
    layers = ACmix2d(3, 8, 2, 3, stride=2), nn.ReLU(), ACmix2d(8, 8, 2, 3, mix="attention")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def found(names=("cat & <dog>.png", "b"), **options):
    pictures = [(name, np.full((16, 20, 3), 90, dtype=np.uint8)) for name in names]
    return analyze(network(), torch.randn(3, 3, 16, 20), pictures, **options)


@pytest.mark.slow
def test_all_is_in_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    curves = Curves({"loss": [(1, 2.0), (2, 1.0)], "alpha/0": [(1, 0.5)]}, {"acc": [(1, 9.0)]})
    names = ["cat & <dog>.png"]
    files = write_report(found(names, curves=curves), tmp_path / "out", "A <title>", ["A & B"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in files}
    page = (tmp_path / "out" / "report.html").read_text()
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]+)">', page)
    assert [alt for alt, _ in pictures].count("cat &amp; &lt;dog&gt;.png") == 2
    drawn = [base64.b64decode(data) for _, data in pictures]
    assert sorted(drawn) == sorted(path.read_bytes() for path in files if path.suffix == ".svg")
    assert "A &lt;title&gt;" in page
    assert '<meta name="viewport" content="width=device-width' in page
    # Nothing is fetched, by the page or by a figure in it.
    for text in (page, *(data.decode() for data in drawn)):
        targets = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"|url\(([^)]*)\)|@import\s+(\S+)', text)
        assert all(re.match(r"['\"]?(data:|#)", "".join(target)) for target in targets)
        assert not re.search(r"<(script|iframe|link|object|embed)\b", text)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_numbers_are_plain_json():
    record = json.loads(json.dumps(found().record()), parse_constant=refuse)
    first, second = record["rates"]
    assert (first["alpha"], first["log_ratio"]) == (0.5, 0.0)
    assert (second["beta"], second["log_ratio"]) == (0.0, None)  # there is no such path
    (stage_1, stage_2) = record["images"][0]["attention"]
    assert stage_1["layer"] == "0"
    assert np.shape(stage_2["largest"]) == (3, 2)  # queries, heads
    assert record["images"][0]["paths"][1]["attention_share"] == 1.0
    assert record["receptive_field"]["size"] == [16, 20]


def test_models_that_give_no_numbers_are_named():
    net = network()
    nn.init.constant_(net[0].conv1.weight, float("nan"))
    with pytest.raises(InputError, match="images=no finite gradient: .*range"):
        analyze(net, torch.randn(1, 3, 16, 16), [])


def test_matplotlib_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        write_report(found(()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
