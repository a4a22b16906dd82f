"""The analysis command of a classifier: with images and without, and what it refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import acmix_swin  # noqa: F401  registers the backbone
from acmix.mm import analyze
from acmix.mm.analyze import analyze_model
from support import ROOT, build_model

SWIN = ROOT / "swin"
CONFIG = "acmix-swin-nano_1xb64_digits-32px.py"
# A smaller model of the same kind, and a set of 12 images.
OPTIONS = [
    *("--cfg-options", "model.backbone.arch.depths=[1,1]", "model.backbone.arch.embed_dims=16"),
    *("model.backbone.arch.num_heads=[2,4]", "model.head.in_channels=32"),
    "test_dataloader.dataset.indices=12",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cfg = Config.fromfile(SWIN / "configs" / CONFIG)
    cfg.model.backbone.arch = dict(embed_dims=16, depths=[1, 1], num_heads=[2, 4])
    cfg.model.head.in_channels = 32
    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry("mmpretrain") as registry:
        model = registry.build(cfg.model)
    torch.save({"state_dict": model.state_dict()}, folder / "model.pth")
    log = folder / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 2.0, "iter": 1, "step": 1}\n{"loss": NaN, "iter": 2, "step": 2}\n')
    return str(folder / "model.pth")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(name, generator.integers(0, 255, (9, 14, 3), dtype=np.uint8))
    Path("bad.png").write_text("no image")
    Path("file").touch()
    return tmp_path


def run(checkpoint, *arguments):
    return analyze_model(SWIN, [CONFIG, checkpoint, *arguments, *OPTIONS])


@pytest.mark.slow
def test_images_of_the_test_set(checkpoint, images, capsys):
    found = run(checkpoint, "--out", "new/out")
    assert "wrote report.html and 17 files for it to new/out" in capsys.readouterr().out
    assert [view.name for view in found.views] == ["test image 0", "test image 1"]
    assert found.images == 8
    assert found.curves.train == {"loss": [(1, 2.0)]}
    record = json.loads(Path("new/out/analysis.json").read_text())
    assert [r["layer"] for r in record["rates"]] == [
        f"stages.{stage}.blocks.0.attn.w_msa" for stage in (0, 1)
    ]
    assert record["costs"]["input_size"] == [3, 32, 32]
    assert "20260101" not in Path("new/out/report.html").read_text()


def test_own_images_and_queries(checkpoint, images, monkeypatch):
    monkeypatch.setattr(analyze, "write_report", lambda *args: [])
    options = ["--image", "[ab].png", "--query", "0,0", "1,0.4"]
    found = run(checkpoint, "--out", "out", *options, "--layers", "stages.1.blocks.0.attn.w_msa")
    assert [view.name for view in found.views] == ["a.png", "b.png"]
    assert found.images == 2
    # As the model sees it, but in RGB.
    seen = cv2.resize(cv2.imread("a.png"), (32, 32), interpolation=cv2.INTER_CUBIC)[..., ::-1]
    np.testing.assert_array_equal(found.views[0].picture, seen)
    (attention,) = found.views[0].attention
    assert attention.queries == [(0.125, 0.125), (0.875, 0.375)]
    assert (attention.weights[0] - attention.weights[1]).abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "file"], "--out file: "),
        (["--out", "out", "--image", "bad.png"], "--image bad.png: is no image"),
        (["--out", "out", "--image", "none.png"], "none.png: no such file"),
        (["--out", "out", "--query", "0.5"], "--query 0.5: give row,column"),
        (["--out", "out", "--query", "0.5,7"], "(0.5, 7.0): give (row, column) in shares"),
        (["--out", "out", "--layers", "stages.9"], "layers=stages.9: "),
        (["--out", "out", "--device", "toaster"], "--device toaster: "),
    ],
)
def test_bad_input_is_named(arguments, message, checkpoint, images, capsys):
    with pytest.raises(SystemExit):
        run(checkpoint, *arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_missing_checkpoint_is_named(images, capsys):
    with pytest.raises(SystemExit):
        run("none.pth", "--out", "out")
    assert "none.pth" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_missing_test_set_is_named(checkpoint, images, capsys):
    absent = ["test_dataloader.dataset.data_root=nowhere"]
    with pytest.raises(SystemExit):
        run(checkpoint, "--out", "out", *OPTIONS, *absent)
    assert "--image is missing, and so is the config's test set" in capsys.readouterr().err


def test_a_model_without_our_layers_is_named(images, capsys):
    Path("plain.py").write_text(
        f"_base_ = [{str(SWIN / 'configs' / CONFIG)!r}]\n"
        "model = dict(backbone=dict(_delete_=True, type='LeNet5'), neck=None,"
        " head=dict(_delete_=True, type='ClsHead'))\n"
    )
    torch.save({"state_dict": build_model(Path("plain.py")).state_dict()}, "plain.pth")
    with pytest.raises(SystemExit):
        analyze_model(SWIN, ["plain.py", "plain.pth", "--out", "out"])
    assert "model.backbone.type=LeNet5: it has no ACmix layer" in capsys.readouterr().err
