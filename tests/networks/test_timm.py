"""timm: feature maps, averages of weights, its helpers, over networks with our layers."""

import copy

import pytest
import torch

from acmix import ACmix2d, replace_convolutions
from user_networks import build_network, images

timm = pytest.importorskip("timm", reason="timm is not installed (pip install timm)")
optim = pytest.importorskip("timm.optim")


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, ACmix2d)]


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
def test_feature_maps(kind):
    model = timm.create_model("resnet18", features_only=True, feature_cls=kind)
    sizes = [out.shape for out in maps(model, images(65))]
    replace_convolutions(model, kernel_att=3, copy_weights=False)
    assert len(layers_of(model)) == 16
    assert [out.shape for out in maps(model, images(65))] == sizes


def maps(model, x):
    out = model(x)
    return list(out.values()) if isinstance(out, dict) else out


def test_average_of_weights():
    model = build_network("timm-resnet50").train()
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(images()).square().mean().backward()
    optimizer.step()
    ema.update(model, step=2)  # The first one copies.
    name = next(n for n, m in model.named_modules() if isinstance(m, ACmix2d))
    for key in (f"{name}.conv1.weight", f"{name}.rate1", f"{name}.dep_conv.weight"):
        mean = (before[key] + model.state_dict()[key]) / 2
        torch.testing.assert_close(ema.module.state_dict()[key], mean)
    assert ema.module(images()).isfinite().all()


def test_reparameterize_makes_the_deploy_form():
    model, x = build_network("timm-resnet50"), images()
    expected = model(x)
    fused = timm.utils.reparameterize_model(model)
    assert all(layer.deployed for layer in layers_of(fused))
    assert not any(layer.deployed for layer in layers_of(model))
    torch.testing.assert_close(fused(x), expected, rtol=1e-3, atol=1e-4)


def test_helpers():
    model = build_network("timm-resnet50")
    timm.utils.freeze(model, ["layer1"])
    frozen = {p.requires_grad for layer in layers_of(model.layer1) for p in layer.parameters()}
    assert frozen == {False}
    timm.utils.unfreeze(model, ["layer1"])
    assert all(p.requires_grad for p in model.parameters())
    # The rates of the mix are vectors, so no weight decay reaches them.
    groups = optim.param_groups_weight_decay(model, weight_decay=0.1)
    (undecayed,) = [g["params"] for g in groups if not g["weight_decay"]]
    assert {id(layer.rate1) for layer in layers_of(model)} <= {id(p) for p in undecayed}
    optimizer = optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    model(images()).sum().backward()
    optimizer.step()
    norms = timm.layers.freeze_batch_norm_2d(copy.deepcopy(model))
    assert norms(images()).shape == (2, 5)
