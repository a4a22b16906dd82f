"""The demo: what it shows of an image, and that its page is reached from this machine alone."""

import re
import sys
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from acmix import InputError
from acmix.mm import demo
from acmix.mm.export import load_model
from acmix.mm.predicting import Predictor
from support import ROOT, build_model

SWIN = ROOT / "swin"
CONFIG = "acmix-swin-nano_1xb64_digits-32px.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"state_dict": build_model(SWIN / "configs" / CONFIG).state_dict()}, path)
    return str(path)


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    return tmp_path / "a.png"


@pytest.fixture
def gradio(monkeypatch):
    """In its place something that takes every call, and whose page gives none of its threads."""
    fake = mock.MagicMock()
    fake.Error = RuntimeError
    monkeypatch.setitem(sys.modules, "gradio", fake)
    return fake


def captions(html):
    targets = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(target.startswith("data:image/") for target in targets)
    return re.findall(r"<figcaption>([^<]*)</figcaption>", html)


@pytest.fixture
def predictor(checkpoint):
    cfg = Config.fromfile(SWIN / "configs" / CONFIG)
    model, classes = load_model(cfg, checkpoint)
    return cfg, Predictor(cfg, model, classes, torch.device("cpu"), 5)


def test_best_classes_and_maps(predictor, image):
    cfg, predictor = predictor
    scores, html = demo.answer(cfg, predictor, image)
    (prediction,) = predictor([image])
    found = prediction.record["classes"]
    assert scores == {entry["class"]: entry["score"] for entry in found}
    assert len(scores) == 5
    assert [caption.split(",")[0] for caption in captions(html)] == [
        *("Where three queries look", "What each path adds", "What the last map sees"),
        "How the layers weigh their paths",
    ]


def test_what_is_no_image_is_said_on_the_page(predictor, image, gradio):
    image.write_text("no image")
    cfg, predictor = predictor
    with pytest.raises(InputError, match=r"image a\.png: is no image, or a damaged one; give"):
        demo.answer(cfg, predictor, image)
    page, _ = demo.build_page(cfg, predictor, "title")
    assert page is gradio.Blocks.return_value.__enter__.return_value
    (show, *_), _ = gradio.Image.return_value.change.call_args
    assert show(None) == (None, "")
    with pytest.raises(RuntimeError, match=r"a\.png: is no image"):  # gradio's own error
        show(str(image))


def test_the_page_is_of_this_machine_alone(checkpoint, gradio, monkeypatch, capsys):
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    page = gradio.Blocks.return_value.__enter__.return_value
    page.local_url = "http://127.0.0.1:7999/"
    demo.demo(SWIN, [CONFIG, checkpoint, "--port", "7999"])
    options = page.launch.call_args.kwargs
    assert (options["server_name"], options["server_port"]) == ("127.0.0.1", 7999)
    assert options["share"] is False
    assert gradio.Blocks.call_args.kwargs["analytics_enabled"] is False
    assert demo.os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert "open http://127.0.0.1:7999/" in capsys.readouterr().out
    page.launch.side_effect = OSError("Cannot find empty port")
    with pytest.raises(SystemExit):
        demo.demo(SWIN, [CONFIG, checkpoint, "--port", "7999"])
    assert "--port 7999: it is taken" in capsys.readouterr().err


def test_gradio_is_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        demo.demo(SWIN, [CONFIG, "none.pth"])
    assert 'pip install "acmix[demo]"' in capsys.readouterr().err
