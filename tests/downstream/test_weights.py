"""Weights through MMDetection's and MMSegmentation's own loaders: right, or refused."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from acmix import CheckpointError, load_released
from support import GOLDEN, ROOT, golden
from weights_files import DETECTOR as DETECTOR_FILE
from weights_files import DOWNSTREAM, REFUSED, WRITERS, expected

DETECTOR = ROOT / "swin/configs/detection/mask-rcnn_acmix-swin-tiny_fpn_ms-crop-3x_coco.py"
SEGMENTOR = ROOT / "swin/configs/segmentation/upernet_acmix-swin-tiny_8xb2-160k_ade20k-512x512.py"
RELEASED = GOLDEN / "official_swin_mini.pth"


def small(path):
    """The config with the backbone of the released file and small heads."""
    cfg = Config.fromfile(path)
    arch = dict(embed_dims=24, depths=[2, 2], num_heads=[2, 4])
    cfg.model.backbone.update(arch=arch, drop_path_rate=0.0, out_indices=(0, 1))
    if path is DETECTOR:
        cfg.model.neck.update(in_channels=[24, 48], out_channels=16)
        cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
        for name in ("bbox", "mask"):
            cfg.model.roi_head[f"{name}_roi_extractor"].out_channels = 16
        cfg.model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
        cfg.model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    else:
        cfg.model.decode_head.update(in_channels=[24, 48], in_index=[0, 1], channels=16)
        cfg.model.auxiliary_head.update(in_channels=48, in_index=1, channels=16)
    return cfg


def build(cfg):
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


def by_init_detector(cfg, path):
    from mmdet.apis import init_detector

    return init_detector(cfg, path, device="cpu")


def by_det_inferencer(cfg, path):
    from mmdet.apis import DetInferencer

    return DetInferencer(cfg, path, device="cpu", show_progress=False).model


def by_init_model(cfg, path):
    from mmseg.apis import init_model

    return init_model(cfg, path, device="cpu")


def by_seg_inferencer(cfg, path):
    from mmseg.apis import MMSegInferencer

    return MMSegInferencer(cfg, path, device="cpu").model


def by_runner(cfg, path, folder="."):
    """As ``tools/test.py`` of both."""
    runner = Runner(build(cfg), str(folder), load_from=path, log_level="ERROR")
    runner.load_or_resume()
    return runner.model.eval()


LOADERS = [
    (DETECTOR, by_init_detector),
    (DETECTOR, by_det_inferencer),
    (DETECTOR, by_runner),
    (SEGMENTOR, by_init_model),
    (SEGMENTOR, by_seg_inferencer),
    (SEGMENTOR, by_runner),
]
EVERY = pytest.mark.parametrize(("path", "load"), LOADERS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != DETECTOR_FILE])
@pytest.mark.parametrize(
    ("path", "load"), [(DETECTOR, by_init_detector), (SEGMENTOR, by_init_model)]
)
def test_a_file_of_a_classifier_is_refused_for_its_heads(path, load, writer, tmp_path):
    assert expected(writer, DOWNSTREAM) == REFUSED
    cfg, file = small(path), WRITERS[writer](tmp_path)
    cfg.model.backbone = file.model["backbone"]
    with pytest.raises(CheckpointError, match=r"its classes or heads|plain ResNet can start"):
        load(cfg, str(file.path))


@EVERY
@pytest.mark.parametrize("names", ["released", "ours"])
def test_a_whole_models_file_fills_it_whatever_its_backbones_names(path, load, names, tmp_path):
    source = build(small(path))
    weights = source.state_dict()
    if names == "released":  # as the detectors and segmentors of Swin's authors name theirs
        weights = {n: w for n, w in weights.items() if not n.startswith("backbone.")}
        body = load_released(RELEASED).items()
        weights |= {f"backbone.{n}": w for n, w in body if not n.startswith("head.")}
        for kind in ("weight", "bias"):
            weights[f"backbone.norm0.{kind}"] = source.state_dict()[f"backbone.norm0.{kind}"]
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    model = load(small(path), str(tmp_path / "model.pth"))
    for name, weight in model.state_dict().items():
        if name in weights:
            assert torch.equal(weight, weights[name]), name
    if names == "released":
        io = golden("official_swin_mini_io.pt")
        with torch.no_grad():
            features = model.backbone(io["input"])[-1].mean((2, 3))
        assert (features - io["features"]).abs().max() <= 1e-5


@EVERY
def test_a_file_that_lacks_a_part_is_refused(path, load, tmp_path):
    weights = build(small(path)).state_dict()
    missing = next(name for name in weights if "head" in name)
    del weights[missing]
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"{missing}: absent"):
        load(small(path), str(tmp_path / "model.pth"))
