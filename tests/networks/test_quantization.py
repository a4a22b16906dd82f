"""torchao: int8 dynamic quantisation of the linear layers of a network."""

import pytest
import torch
from torch import nn

from layers import LAYERS
from user_networks import build_network, images

torchao = pytest.importorskip("torchao", reason="torchao is not installed (pip install torchao)")


def quantize(model):
    config = torchao.quantization.Int8DynamicActivationInt8WeightConfig()
    torchao.quantization.quantize_(model, config)
    return model


def is_int8(module):
    return type(module.weight.data) is not torch.Tensor


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "timm-resnet50", "csp"])
def test_rest_of_a_network(name):
    network, x = build_network(name), images()
    expected = network(x).detach()
    quantize(network)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert linear
    assert all(is_int8(m) for m in linear)
    error = (network(x) - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["WindowACmix", "GlobalACmix"])
def test_layers_of_linear_projections(name):
    kind = LAYERS[name]
    layer, inputs = kind.make().eval(), kind.inputs(6, 7)
    expected = layer(*inputs).detach()
    quantize(layer)
    assert any(is_int8(m) for m in layer.modules() if isinstance(m, nn.Linear))
    error = (layer(*inputs) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
