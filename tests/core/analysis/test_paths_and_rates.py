"""What each path adds, and how the layers weigh them."""

import copy
import math

import pytest
import torch
from torch import nn

from acmix import MIX_MODES, ACmix2d, InputError, WindowACmix, deploy
from acmix.analysis import mixing_rates, path_maps
from acmix.modules import ACmix
from support import scrambled


@pytest.mark.parametrize(
    "layer", [ACmix2d(6, 8, 2, 3, stride=2), ACmix(6, 8, 3, 2, stride=2)], ids=["ours", "released"]
)
@pytest.mark.parametrize("deployed", [False, True])
def test_paths_add_up_to_the_output(layer, deployed):
    torch.manual_seed(0)
    layer, x = scrambled(layer), torch.randn(2, 6, 7, 5)
    whole = layer(x)
    rates = {"attention": (layer.rate1.clone(), 0.0), "convolution": (0.0, layer.rate2.clone())}
    for path, (alpha, beta) in rates.items():
        with torch.no_grad():  # what is left when the other path is off
            layer.rate1.fill_(0.0).add_(alpha)
            layer.rate2.fill_(0.0).add_(beta)
        alone = layer(x)
        (found,) = path_maps(deploy(copy.deepcopy(layer)) if deployed else layer, x)
        torch.testing.assert_close(getattr(found, path), alone.norm(dim=1), atol=1e-5, rtol=1e-4)
        other = {"attention": "convolution", "convolution": "attention"}[path]
        assert not getattr(found, other).any()
        whole = whole - alone
    assert whole.abs().max() < 1e-5


def test_maps_are_cut_to_the_image():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = scrambled(WindowACmix(8, 4, 2))

        def forward(self, x):
            return self.attn(x.permute(0, 2, 3, 1)).mean((1, 2))

    (found,) = path_maps(Net(), torch.randn(1, 8, 5, 6))
    assert found.attention.shape == found.convolution.shape == (1, 5, 6)
    assert 0 < found.attention_share < 1


def test_a_path_that_is_not_there():
    x = torch.randn(1, 6, 5, 5)
    (alone,) = path_maps(ACmix2d(6, 8, 2, mix="attention"), x)
    assert alone.convolution is None
    assert alone.attention_share == 1
    (alone,) = path_maps(ACmix2d(6, 8, 2, mix="convolution"), x)
    assert alone.attention is None
    assert alone.attention_share == 0


def test_rates_of_every_mix():
    net = nn.ModuleDict({mix: ACmix2d(4, 4, mix=mix) for mix in MIX_MODES})
    for layer in net.values():
        if hasattr(layer, "rate1"):
            nn.init.constant_(layer.rate1, -0.75)
    nn.init.constant_(net["alpha_beta"].rate2, 0.25)
    rates = mixing_rates(net)
    assert {r.layer: (r.alpha, r.beta) for r in rates} == {
        "alpha_beta": (-0.75, 0.25),
        "alpha_complement": (-0.75, 1.75),
        "alpha_one": (-0.75, 1.0),
        "one_one": (1.0, 1.0),
        "attention": (1.0, 0.0),
        "convolution": (0.0, 1.0),
    }
    ratios = [r.log_ratio for r in rates]
    assert ratios == [math.log(3), math.log(0.75 / 1.75), math.log(0.75), 0, math.inf, -math.inf]


def test_folded_rates_are_refused():
    net = deploy(nn.Sequential(ACmix2d(4, 4)))
    with pytest.raises(InputError, match="deployed layer=0: alpha and beta are folded"):
        mixing_rates(net)
