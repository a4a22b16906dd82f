"""The prediction command of a classifier: names, tables, files, and what is no image."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from acmix.mm import predicting
from acmix.mm.predict import predict
from support import ROOT, build_model

SWIN = ROOT / "swin"
CONFIG = "configs/acmix-swin-nano_1xb64_digits-32px.py"
NAMES = [f"digit {i}" for i in range(10)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    weights = build_model(SWIN / CONFIG).state_dict()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": {"classes": NAMES}}}, path)
    return str(path)


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("some pictures/a.png", "some pictures/deep/a.jpg", "b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, generator.integers(0, 255, (9, 14, 3), dtype=np.uint8))
    Path("bad.png").write_text("no image")
    Path("some pictures/notes.txt").write_text("no image, and not read")
    return tmp_path


def run(checkpoint, *arguments):
    return predict(SWIN, [CONFIG, checkpoint, *arguments])


def test_files_folders_and_patterns(checkpoint, images, capsys):
    records = run(
        checkpoint, "some pictures", "*.png", "--topk", "3", "--batch", "2", "--out-dir", "out"
    )
    paths = ["some pictures/a.png", "some pictures/deep/a.jpg", "b.png", "bad.png"]
    assert [record["image"] for record in records] == [*paths[:2], "b.png", "bad.png"]
    printed = capsys.readouterr()
    assert all(path in printed.out for path in paths)
    assert "skipped bad.png: is no image, or a damaged one" in printed.err
    for record in records[:3]:
        scores = [entry["score"] for entry in record["classes"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert {entry["class"] for entry in record["classes"]} <= set(NAMES)
    assert json.loads(Path("out/predictions.json").read_text()) == records
    rows = list(csv.DictReader(Path("out/predictions.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [path for path in paths[:3] for _ in range(3)]
    # Small images are enlarged, so that the text can be read.
    for name in ("a.png", "deep/a.png", "b.png"):
        assert min(cv2.imread(f"out/{name}").shape[:2]) >= 224


def test_scores_are_those_of_the_test_pipeline_in_any_batch(checkpoint, images):
    together = run(checkpoint, "some pictures", "b.png", "--topk", "10")
    alone = run(checkpoint, "b.png", "--topk", "10", "--batch", "1")
    torch.testing.assert_close(*[[e["score"] for e in r[-1]["classes"]] for r in (together, alone)])
    assert sum(entry["score"] for entry in alone[0]["classes"]) == pytest.approx(1, abs=1e-4)


def test_images_are_read_as_the_config_reads_them():
    def steps(*kinds):
        data = dict(type="ImageFolder", pipeline=[dict(kind) for kind in kinds])
        return predicting._steps(Config(dict(test_dataloader=dict(dataset=data))))

    own, pack = dict(type="mmcv.LoadImageFromFile", imdecode_backend="pillow"), dict(type="Pack")
    assert steps(own, dict(type="mmdet.LoadAnnotations"), pack) == [own, pack]
    assert steps(pack) == [dict(type="mmcv.LoadImageFromFile"), pack]


def test_pictures_of_one_name_are_kept_apart(checkpoint, images):
    run(checkpoint, "some pictures/a.png", "some pictures/deep/a.jpg", "--out-dir", "out")
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a-2.png", "a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing*.png"], "nothing*.png: no such file"),
        (["bad.png"], "bad.png: none of 1 files can be decoded"),
        (["b.png", "--topk", "0"], "--topk 0: give a positive number"),
        (["b.png", "--batch", "-1"], "--batch -1: give a positive number"),
        (["b.png", "--device", "toaster"], "--device toaster: "),
        (["b.png", "--out-dir", "b.png"], "b.png"),
    ],
)
def test_bad_input_is_named(arguments, message, checkpoint, images, capsys):
    with pytest.raises(SystemExit):
        run(checkpoint, *arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
