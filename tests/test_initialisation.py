"""Every parameter starts as in the original code: its distribution, written out by kind."""

import math

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from acmix.modules.shift import ShiftKernels
from support import ROOT

CONFIGS = {
    "resnet": "resnet/configs/acmix-resnet26_8xb32_in1k.py",
    "san": "san/configs/acmix-san10_8xb32_in1k.py",
    "pvt": "pvt/configs/acmix-pvt-tiny_8xb128_in1k.py",
    "swin": "swin/configs/acmix-swin-tiny_8xb128_in1k.py",
}


def normal(std):
    return "normal", std


def uniform(bound):
    return "uniform", bound


def constant(value):
    return "constant", value


def torchs(module):
    """What torch gives a linear layer or a convolution: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return uniform(1 / math.sqrt(module.weight[0].numel()))


def of_resnet(module, name):
    """Kaiming's normal of every convolution's weight by its outputs, torch's own otherwise."""
    if isinstance(module, nn.Conv2d) and name == "weight":
        outputs = module.out_channels * math.prod(module.kernel_size)
        return normal(math.sqrt(2 / outputs))
    return torchs(module)


def of_san(module, name):
    """Nothing but torch's own."""
    return torchs(module)


def of_transformer(module, name):
    """Linear layers are normal, and positions; convolutions are torch's own."""
    if isinstance(module, nn.Conv2d):
        return torchs(module)
    return constant(0) if name == "bias" else normal(0.02)


FORMULAS = {
    "resnet": of_resnet,
    "san": of_san,
    "pvt": of_transformer,
    "swin": of_transformer,
}


def expected(family, module, name):
    """The distribution of a parameter; alpha, beta, norms and shifts are alike in all families."""
    if name in ("rate1", "rate2"):
        return constant(0.5)
    if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        return constant(1 if name == "weight" else 0)
    if isinstance(module, ShiftKernels):
        return "shifts", None
    return FORMULAS[family](module, name)


def assert_drawn_from(value, kind, parameter, label):
    """Mean and deviation within five standard errors, and a uniform one within its bounds."""
    if kind == "constant":
        assert (value == parameter).all(), label
        return
    if kind == "shifts":
        taps = torch.eye(9).view(1, 9, 3, 3)
        assert torch.equal(value, taps.expand_as(value)), label
        return
    # One number in 2^24 of torch's truncated normal is no draw but its bound, which is 2.
    value = value[value.abs() < 2]
    count, std = value.numel(), parameter
    if kind == "uniform":
        assert value.abs().max() <= parameter * (1 + 1e-6), label
        std = parameter / math.sqrt(3)
    assert value.mean().abs() <= 5 * std / math.sqrt(count), label
    # The mean square of a normal has the larger spread of the two, sqrt(2 / n) of itself.
    assert (value.square().mean() / std**2 - 1).abs() <= 5 * math.sqrt(2 / count), label


@pytest.mark.parametrize("family", CONFIGS)
def test_start_of_every_parameter(family):
    model = MODELS.build(Config.fromfile(ROOT / CONFIGS[family]).model)
    model.init_weights()
    seen = 0
    for path, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            kind, parameter = expected(family, module, name)
            assert_drawn_from(value.detach(), kind, parameter, f"{path}.{name}")
            seen += 1
    assert seen == len(list(model.parameters()))
