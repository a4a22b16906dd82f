"""ResNet: weights of every origin."""

import pytest
import torch
from mmpretrain.models import ResNet
from torchvision.models import resnet50

from acmix import CheckpointError, InputError, load_released
from acmix.mm import load_weights
from acmix_resnet import ACmixResNet
from acmix_resnet.convert import convert_state_dict
from support import golden_weights


@pytest.mark.parametrize("depth", [26, 38, 50])
def test_released_names_and_shapes_fill_the_model(depth):
    weights = golden_weights("official_state_dict_layout.json", f"acmix_resnet{depth}")
    conversion = convert_state_dict(weights)
    own = ACmixResNet(depth).state_dict()
    body = {k: v.shape for k, v in conversion.state_dict.items() if k.startswith("backbone.")}
    assert body == {f"backbone.{k}": v.shape for k, v in own.items()}
    assert {k for k in conversion.state_dict if k not in body} == {"head.fc.weight", "head.fc.bias"}


def test_a_run_of_the_released_code_loads(tmp_path):
    source = ACmixResNet(26)
    run = {
        "epoch": 3,
        "state_dict": {f"module.{k}": v for k, v in source.state_dict().items()},
        "best_acc1": torch.tensor(70.0),
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"last_epoch": 3},
    }
    torch.save(run, tmp_path / "run.pth")
    target = ACmixResNet(26)
    load_weights(target, load_released(tmp_path / "run.pth"), "run", complete=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize("make", [resnet50, lambda: ResNet(50)], ids=["torchvision", "mmpretrain"])
def test_plain_resnet_starts_all_but_the_acmix_layers(make):
    plain = make().state_dict()
    ours = ACmixResNet(50)
    start = {name: w.clone() for name, w in ours.state_dict().items()}
    load_weights(ours, plain, "plain")
    for name, weight in ours.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        expected = start[name] if ".conv2." in name else plain[name]
        assert torch.equal(weight, expected), name


def test_plain_resnet_is_not_tested_as_acmix():
    with pytest.raises(
        CheckpointError, match="plain ResNet can start a training but not be tested"
    ):
        load_weights(ACmixResNet(50), ResNet(50).state_dict(), "plain", complete=True)


def test_plain_resnet_of_other_depth_is_refused():
    with pytest.raises(CheckpointError, match="missing or of another size"):
        load_weights(ACmixResNet(50), ResNet(18).state_dict(), "plain")


def test_unknown_depth_is_named():
    with pytest.raises(InputError, match="depth=101: choose from 26, 38, 50"):
        ACmixResNet(101)


def test_dilated_last_stage_keeps_the_resolution():
    backbone = ACmixResNet(
        26, stem_channels=8, base_channels=4, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)
    )
    assert backbone(torch.randn(2, 3, 64, 96))[0].shape == (2, 128, 4, 6)
