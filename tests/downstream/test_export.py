"""Backbone and neck of detectors and segmentors as ONNX files that serve images of any size."""

import pytest
import torch

from acmix.mm.export import export
from acmix.mm.formats import Onnx
from small_configs import PVT, write_config
from support import ROOT, build_model, scrambled

SWIN = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
SMALL = {
    "RetinaNet of PVT": (
        "pvt/configs/detection/retinanet_acmix-pvt-tiny_fpn_1x_coco.py",
        dict(backbone=dict(arch=PVT), neck=dict(in_channels=PVT["embed_dims"], out_channels=24)),
        [(42, 63), (21, 32), (11, 16), (6, 8), (3, 4)],
    ),
    "UPerNet of Swin": (
        "swin/configs/segmentation/upernet_acmix-swin-tiny_8xb2-160k_ade20k-512x512.py",
        dict(
            backbone=dict(arch=SWIN),
            decode_head=dict(in_channels=[16, 32, 64, 128], channels=16),
            auxiliary_head=dict(in_channels=64, channels=16),
        ),
        [(84, 125), (42, 63), (21, 32), (11, 16)],
    ),
}
FULL = {
    "RetinaNet of ResNet": "resnet/configs/detection/retinanet_acmix-resnet50_fpn_1x_coco.py",
    "Mask R-CNN of Swin": "swin/configs/detection/mask-rcnn_acmix-swin-tiny_fpn_ms-crop-3x_coco.py",
}


def run(config, model, folder):
    """The command's checks of a file of any size, and the maps that it gives for 333×500."""
    pytest.importorskip("onnxscript", reason="onnxscript is missing: pip install acmix[onnx]")
    own, weights, out = folder / "config.py", folder / "model.pth", folder / "maps.onnx"
    write_config(own, config, model)
    network = scrambled(build_model(own), 0.0, 0.1)
    torch.save({"state_dict": network.state_dict()}, weights)
    arguments = [own, weights, out, "--dynamic", "--size", 333, 500]
    checks = export(ROOT / config.split("/")[0], [str(argument) for argument in arguments])
    maps = Onnx().load(out)(torch.zeros(1, 3, 333, 500))
    return {check.shape for check in checks}, [tuple(x.shape[2:]) for x in maps]


@pytest.mark.parametrize(
    ("config", "model", "sizes"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.thorough] * name.startswith("UPerNet"))
        for name, case in SMALL.items()
    ],
)
def test_command_writes_the_maps_of_a_small_model(config, model, sizes, tmp_path):
    shapes, maps = run(config, model, tmp_path)
    assert {(1, 3, 333, 500), (3, 3, 333, 500), (3, 3, 97, 61)} <= shapes
    assert maps == sizes


@pytest.mark.thorough
@pytest.mark.parametrize("config", FULL.values(), ids=FULL)
def test_command_writes_the_maps_of_a_full_model(config, tmp_path):
    assert len(run(config, {}, tmp_path)[1]) == 5
