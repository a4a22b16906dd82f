"""The commands on detectors and segmentors, as a user runs them, and their errors."""

import json
from pathlib import Path

import pytest
import torch

from acmix.mm import cli
from shapes import write_coco
from support import ROOT, run_tool

PVT = ROOT / "pvt"
DETECTOR = "configs/detection/retinanet_acmix-pvt-tiny_fpn_1x_coco.py"
SEGMENTOR = "configs/segmentation/fpn_acmix-pvt-tiny_8xb4-40k_ade20k-512x512.py"
TINY = [
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")),
    "train_dataloader.batch_size=2",
    "param_scheduler=None",
    "default_hooks.logger.interval=1",
]
DETECT = [
    *TINY,
    "train_dataloader.dataset.pipeline.2.scale=(128,96)",
    "test_dataloader.dataset.pipeline.1.scale=(128,96)",
    "val_dataloader.dataset.pipeline.1.scale=(128,96)",
    "train_cfg.max_epochs=1",
    "model.test_cfg.score_thr=0.0",
]
SEGMENT = [
    *TINY,
    "train_dataloader.dataset.pipeline.2.scale=(128,96)",
    "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
    "model.data_preprocessor.size=(64,64)",
    "test_dataloader.dataset.pipeline.1.scale=(128,96)",
    "val_dataloader.dataset.pipeline.1.scale=(128,96)",
    "train_cfg.max_iters=3",
    "train_cfg.val_interval=3",
    "default_hooks.checkpoint.interval=3",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "data", "options", "checkpoint", "score"),
    [
        (DETECTOR, "coco", DETECT, "epoch_1.pth", "coco/bbox_mAP"),
        (SEGMENTOR, "ade", SEGMENT, "iter_3.pth", "mIoU"),
    ],
    ids=["detector", "segmentor"],
)
def test_tools_train_test_and_draw(config, data, options, checkpoint, score, request, tmp_path):
    options = ["--cfg-options", f"data_root={request.getfixturevalue(data)}", *options]
    run_tool("pvt", "train", config, "--work-dir", "work", *options, cwd=tmp_path)
    assert torch.load(Path("work", checkpoint), weights_only=True)["meta"]["iter"] == 3
    written = ["--out", "metrics.json", "--out-item", "metrics", "--show-dir", "pictures"]
    run_tool("pvt", "test", config, f"work/{checkpoint}", *written, *options, cwd=tmp_path)
    assert score in json.loads(Path("metrics.json").read_text())
    assert len([*Path("pictures").rglob("*.jpg"), *Path("pictures").rglob("*.png")]) == 6
    one = "test_dataloader.dataset.indices=1"
    flips = run_tool(
        "pvt", "test", config, f"work/{checkpoint}", "--tta", *options, one, cwd=tmp_path
    )
    assert score in flips.stdout


def message(command, *arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(PVT, list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().split("error: ")[-1]


def test_a_missing_annotation_file_is_named(coco, capsys):
    absent = "train_dataloader.dataset.ann_file=annotations/instances_tain2017.json"
    text = message(cli.train, DETECTOR, "--cfg-options", f"data_root={coco}", absent, capsys=capsys)
    assert text == (
        f"train_dataloader: annotation file {coco}/annotations/instances_tain2017.json not found; "
        "did you mean 'instances_train2017.json'?; give the folder that holds train2017/, "
        "annotations/ and val2017/ with --cfg-options data_root=..."
    )


def test_a_missing_folder_is_named(tmp_path, capsys):
    text = message(cli.train, SEGMENTOR, "--cfg-options", f"data_root={tmp_path}", capsys=capsys)
    assert text.startswith(f"train_dataloader: data folder {tmp_path}/images/training not found")
    assert "the folder that holds images/ and annotations/ with" in text


@pytest.mark.parametrize(
    ("config", "data", "options", "head"),
    [(DETECTOR, "coco", DETECT, "bbox_head"), (SEGMENTOR, "ade", SEGMENT, "decode_head")],
    ids=["detector", "segmentor"],
)
def test_the_wrong_class_count_is_named(config, data, options, head, request, capsys):
    root = request.getfixturevalue(data)
    wrong = [f"data_root={root}", f"model.{head}.num_classes=7", *options]
    text = message(cli.train, config, "--cfg-options", *wrong, capsys=capsys)
    assert text.startswith(f"model.{head}.num_classes=7: the training data have ")
    assert not list(Path().rglob("*.pth"))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("square", "disc"), "no image with an object of the configured classes is left"),
        (("person", "disc"), "names 1 of the 80 classes of the training data"),
    ],
)
def test_categories_of_ones_own_are_not_passed_over(names, reason, tmp_path, capsys):
    root = write_coco(tmp_path / "own", 2, names)
    text = message(
        cli.train, DETECTOR, "--cfg-options", f"data_root={root}", *DETECT, capsys=capsys
    )
    assert reason in text
    assert "give the names of its categories as metainfo.classes of the data set" in text


def test_frozen_random_weights_are_refused(coco, capsys):
    with pytest.raises(SystemExit):
        cli.train(
            ROOT / "resnet",
            [
                "configs/detection/retinanet_acmix-resnet50_fpn_1x_coco.py",
                "--cfg-options",
                f"data_root={coco}",
            ],
        )
    assert "it must start from an ImageNet checkpoint" in capsys.readouterr().err


def test_masks_are_not_flipped(coco, capsys):
    with pytest.raises(SystemExit):
        cli.test(
            ROOT / "swin",
            [
                "configs/detection/mask-rcnn_acmix-swin-tiny_fpn_ms-crop-3x_coco.py",
                "x.pth",
                "--tta",
            ],
        )
    assert "--tta: masks of flipped images can't be merged" in capsys.readouterr().err
