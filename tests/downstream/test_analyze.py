"""The analysis command on the backbones of detectors and segmentors."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from acmix.mm import analyze, demo
from acmix.mm.export import load_model
from acmix.mm.predicting import Predictor
from small_configs import PVT, write_config
from support import ROOT, build_model

MODELS = {
    "detector": "pvt/configs/detection/retinanet_acmix-pvt-tiny_fpn_1x_coco.py",
    "segmentor": "pvt/configs/segmentation/fpn_acmix-pvt-tiny_8xb4-40k_ade20k-512x512.py",
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_images_of_two_sizes(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analyze, "write_report", lambda *args: [])
    model = dict(backbone=dict(arch=PVT), neck=dict(in_channels=PVT["embed_dims"]))
    write_config(Path("own.py"), config, model)
    torch.save({"state_dict": build_model(Path("own.py")).state_dict()}, "model.pth")
    generator = np.random.default_rng(0)
    for name, size in (("wide.png", (40, 90)), ("high.png", (90, 60))):
        cv2.imwrite(name, generator.integers(0, 255, (*size, 3), dtype=np.uint8))
    scale = ["--cfg-options", "test_dataloader.dataset.pipeline.1.scale=(96,64)"]
    arguments = ["own.py", "model.pth", "--out", "out", "--image", "wide.png", "high.png", *scale]
    found = analyze.analyze_model(ROOT / "pvt", arguments)
    wide, high = (view.picture for view in found.views)
    assert wide.shape == high.shape == (*found.input_size[1:], 3)
    assert not high[:, -1].any()  # filled up
    assert wide[:40, -10].any()
    layers = [attention.layer for attention in found.views[0].attention]
    assert layers == [f"block{stage}.0.attn" for stage in (1, 2, 3, 4)]
    assert [c.stage for c in found.costs] == ["block1", "block2", "block3", "block4", "rest"]


def test_objects_on_the_page_of_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = dict(
        backbone=dict(arch=PVT),
        neck=dict(in_channels=PVT["embed_dims"]),
        test_cfg=dict(score_thr=0.0),
    )
    write_config(Path("own.py"), MODELS["detector"], model)
    torch.save({"state_dict": build_model(Path("own.py")).state_dict()}, "model.pth")
    cv2.imwrite("street.png", np.full((60, 90, 3), 90, dtype=np.uint8))
    cfg = Config.fromfile("own.py")
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 64)
    network, classes = load_model(cfg, "model.pth")
    predictor = Predictor(cfg, network, classes, torch.device("cpu"), 5)
    scores, html = demo.answer(cfg, predictor, Path("street.png"))
    (prediction,) = predictor([Path("street.png")])
    best = prediction.record["objects"][0]
    assert max(scores.values()) == scores[best["class"]] == best["score"]
    assert html.count("data:image/png;base64,") == 1
    assert "<figcaption>What it found</figcaption>" in html
