"""The prediction command on detectors and segmentors."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from acmix.mm.predict import predict
from small_configs import PVT, write_config
from support import ROOT, build_model


def check_objects(record):
    assert len(record["objects"]) == 4
    for entry in record["objects"]:
        left, top, right, bottom = entry["box"]
        assert 0 <= left <= right <= 90
        assert 0 <= top <= bottom <= 60


def check_areas(record):
    assert sum(record["areas"].values()) == pytest.approx(1)


MODELS = {
    "objects": (
        "pvt/configs/detection/retinanet_acmix-pvt-tiny_fpn_1x_coco.py",
        dict(
            backbone=dict(arch=PVT),
            neck=dict(in_channels=PVT["embed_dims"]),
            test_cfg=dict(score_thr=0.0),
        ),
        check_objects,
    ),
    "areas": (
        "pvt/configs/segmentation/fpn_acmix-pvt-tiny_8xb4-40k_ade20k-512x512.py",
        dict(backbone=dict(arch=PVT), neck=dict(in_channels=PVT["embed_dims"])),
        check_areas,
    ),
}


@pytest.mark.parametrize(("config", "model", "check"), MODELS.values(), ids=MODELS)
def test_objects_and_areas(config, model, check, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(Path("own.py"), config, model)
    network = build_model(Path("own.py"))
    torch.save({"state_dict": network.state_dict()}, "model.pth")
    generator = np.random.default_rng(0)
    cv2.imwrite("street.png", generator.integers(0, 255, (60, 90, 3), dtype=np.uint8))
    arguments = ["own.py", "model.pth", "street.png", "--out-dir", "out", "--topk", "4"]
    (record,) = predict(ROOT / "pvt", arguments)
    drawn = cv2.imread("out/street.png")
    assert drawn.shape == (60, 90, 3)
    assert (drawn != cv2.imread("street.png")).any()
    check(record)
