"""Our backbones under heads and in configs of MMDetection and MMSegmentation as these ship them."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torchvision.models import resnet50

from acmix.mm import cli
from families import FAMILIES
from shapes import draw
from support import ROOT

# Stages of each family whose maps have the strides 4 to 32.
STAGES = {"resnet": (0, 1, 2, 3), "san": (1, 2, 3, 4), "pvt": (0, 1, 2, 3), "swin": (0, 1, 2, 3)}


def fpn(channels, start_level=0):
    """MMDetection's neck on maps of these channels."""
    cfg = dict(
        type="mmdet.FPN",
        in_channels=list(channels),
        out_channels=16,
        start_level=start_level,
        num_outs=4,
    )
    return MODELS.build(cfg)


def without_gradient(backbone, neck):
    """Names of trained parameters that a step of backbone and neck leaves without a gradient."""
    maps = neck(backbone.train()(torch.randn(2, 3, 64, 64)))
    sum(m.square().mean() for m in maps).backward()
    network = nn.ModuleDict(dict(backbone=backbone, neck=neck))
    return [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_under_an_fpn_has_a_gradient(name):
    family, stages = FAMILIES[name], STAGES[name]
    channels = [family.channels[stage] for stage in stages]
    assert without_gradient(family.build(out_indices=stages), fpn(channels)) == []
    assert without_gradient(family.build(out_indices=stages[1:]), fpn(channels[1:])) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_later_start_of_the_fpn_leaves_out_what_the_page_says(name):
    family, stages = FAMILIES[name], STAGES[name]
    channels = [family.channels[stage] for stage in stages]
    idle = without_gradient(family.build(out_indices=stages), fpn(channels, start_level=1))
    assert idle == (["backbone.norm0.weight", "backbone.norm0.bias"] if name == "swin" else [])


def test_stock_detector_takes_our_backbone_by_its_type_alone(tmp_path, monkeypatch):
    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    monkeypatch.setattr("acmix.mm.read.download", lambda address: str(tmp_path / "resnet50.pth"))
    config = tmp_path / "config.py"
    config.write_text(
        '_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"\n'
        'model = dict(backbone=dict(type="ACmixResNet"))\n'
        'custom_imports = dict(imports=["acmix_resnet"])\n'
    )
    cfg = Config.fromfile(config)
    assert cfg.model.backbone.init_cfg.checkpoint == "torchvision://resnet50"
    with MODELS.switch_scope_and_registry("mmdet") as registry:
        model = registry.build(cfg.model)
    model.init_weights()
    plain = torch.load(tmp_path / "resnet50.pth", weights_only=True)
    own = model.backbone.state_dict()
    assert torch.equal(own["layer3.1.conv1.weight"], plain["layer3.1.conv1.weight"])
    pixels = torch.tensor(draw(np.random.default_rng(0))[0]).permute(2, 0, 1)
    data = dict(inputs=[pixels], data_samples=[_sample()])
    losses = model.train()(**model.data_preprocessor(data, training=True), mode="loss")
    assert all(
        torch.stack(list(map(torch.as_tensor, part))).isfinite().all() for part in losses.values()
    )


def _sample():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    boxes = InstanceData(bboxes=torch.tensor([[5.0, 5.0, 40.0, 50.0]]), labels=torch.tensor([1]))
    sample = DetDataSample(gt_instances=boxes)
    sample.set_metainfo(dict(img_shape=(96, 128)))
    return sample


def test_classes_that_a_data_set_has_not_are_explained(ade, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.py"
    segmentor = ROOT / "pvt/configs/segmentation/fpn_acmix-pvt-tiny_8xb4-40k_ade20k-512x512.py"
    config.write_text(
        f'_base_ = "{segmentor}"\n'
        f'data_root = "{ade}"\n'
        'train_dataloader = dict(dataset=dict(metainfo=dict(classes=("ground", "disc"))))\n'
    )
    with pytest.raises(SystemExit):
        cli.train(ROOT / "pvt", [str(config)])
    message = capsys.readouterr().err.strip().split("error: ")[-1]
    assert message.startswith("metainfo.classes=('ground', 'disc'): a data set of given classes")
    assert "type=BaseSegDataset" in message
