"""Backbone and neck of detectors as ONNX files that serve images of any size."""

import pytest
import torch
from torch import nn

from exporting import assert_equal_at, onnx_session, to_onnx
from support import ROOT, build_model

pytestmark = pytest.mark.slow

CONFIGS = {
    "RetinaNet of ResNet": "resnet/configs/detection/retinanet_acmix-resnet50_fpn_1x_coco.py",
    "RetinaNet of PVT": "pvt/configs/detection/retinanet_acmix-pvt-tiny_fpn_1x_coco.py",
    "Mask R-CNN of Swin": "swin/configs/detection/mask-rcnn_acmix-swin-tiny_fpn_ms-crop-3x_coco.py",
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_maps_of_a_detector_are_those_of_eager_mode(config, tmp_path):
    detector = build_model(ROOT / config)
    maps, path = nn.Sequential(detector.backbone, detector.neck).eval(), tmp_path / "maps.onnx"
    to_onnx(maps, torch.randn(1, 3, 224, 256), path, dynamo=False)
    assert_equal_at(onnx_session(path), maps, [(333, 500), (97, 64)])
