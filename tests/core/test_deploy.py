"""The deploy form: the same outputs from folded weights, alone and in networks of others."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse as fx_fuse
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import acmix
from acmix import ACmix2d, GlobalACmix, InputError, VectorACmix, WindowACmix

IMAGE, PIXELS = (2, 6, 13, 9), (2, 7, 9, 16)
LAYERS = {
    "sliding": (lambda **o: ACmix2d(6, 16, 4, 5, stride=2, **o), IMAGE),
    "sliding, 8 heads": (lambda **o: ACmix2d(6, 16, 8, 5, dilation=2, **o), IMAGE),
    "patchwise": (lambda **o: VectorACmix(6, 16, 5, **o), IMAGE),
    "pairwise": (lambda **o: VectorACmix(6, 16, 3, attention="pairwise", **o), IMAGE),
    "window": (lambda **o: WindowACmix(16, (3, 4), 4, **o), PIXELS),
    "window, 8 heads": (lambda **o: WindowACmix(16, (3, 4), 8, **o), PIXELS),
    "global": (lambda **o: GlobalACmix(16, 4, 2, **o), (2, 36, 16)),
}
MODES = [(mix, "learnable") for mix in acmix.MIX_MODES]
MODES += [("alpha_beta", shift) for shift in acmix.SHIFT_MODES[:-1]]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def trained(model, dtype=torch.float32):
    """In evaluation, with weights and statistics that no start has."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.to(dtype).eval()


def run(model, shape, dtype=torch.float32):
    torch.manual_seed(1)
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        return model(x, (9, 4)) if len(shape) == 3 else model(x)


def assert_close(actual, expected):
    scale = expected.abs().max()
    assert (actual - expected).abs().max() <= TOLERANCE[expected.dtype] * scale


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(None, torch.float32), (None, torch.float64), ("torch", torch.float32)]
    + [("reference", torch.float64)],
)
@pytest.mark.parametrize(("mix", "shift"), MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_deployed_layer_gives_the_same(name, mix, shift, dtype, backend):
    make, shape = LAYERS[name]
    layer = trained(make(mix=mix, shift=shift, backend=backend), dtype)
    expected = run(layer, shape, dtype)
    layer.switch_to_deploy()
    assert_close(run(layer, shape, dtype), expected)
    assert {p.dtype for p in layer.parameters()} == {dtype}


@pytest.mark.parametrize("mix", acmix.MIX_MODES)
@pytest.mark.parametrize("name", ["sliding", "sliding, 8 heads", "patchwise"])
@pytest.mark.parametrize("at_once", [True, False])
def test_norm_becomes_part_of_the_layer(name, mix, at_once):
    make, shape = LAYERS[name]
    layer, norm = trained(make(mix=mix)), trained(nn.BatchNorm2d(16))
    if mix.startswith("alpha"):
        # Dividing by alpha somewhere would show.
        nn.init.zeros_(layer.rate1)
    expected = norm(run(layer, shape))
    if not at_once:
        layer.switch_to_deploy()
    acmix.fuse_norm(layer, norm)
    assert_close(run(layer, shape), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_rounded_once(name):
    layer = trained(LAYERS[name][0]())
    exact = copy.deepcopy(layer).double()
    for either in (layer, exact):
        either.switch_to_deploy(trained(nn.BatchNorm2d(16)) if either.takes_norm else None)
    for (key, found), wanted in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(found, wanted.float()), key


@pytest.mark.parametrize("mix", ["alpha_beta", "alpha_complement", "one_one"])
def test_bias_of_a_copied_class_stays(mix):
    layer = acmix.ACmix(6, 16, mix=mix)
    weights = layer.state_dict() | {"dep_conv.bias": torch.randn(16)}
    layer.load_state_dict(weights)
    layer, norm = trained(layer), trained(nn.BatchNorm2d(16))
    expected = run(layer, IMAGE)
    layer.switch_to_deploy()
    assert_close(run(layer, IMAGE), expected)
    acmix.fuse_norm(layer, norm)
    assert_close(run(layer, IMAGE), norm(expected))


def test_folded_layer_is_small():
    layer = ACmix2d(6, 16)
    layer.switch_to_deploy()
    names = {name for name, _ in layer.named_parameters()}
    assert names == {
        *("qkv.weight", "qkv.bias", "conv_p.weight", "conv_p.bias"),
        *("dep_conv.weight", "rate1"),
    }
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_deployed_layer_is_copied_pickled_and_loaded(name):
    make, shape = LAYERS[name]
    layer = trained(make())
    before = copy.deepcopy(layer.state_dict())
    layer.switch_to_deploy()
    expected = run(layer, shape)
    other = make().eval()
    other.switch_to_deploy()
    run(other, shape)  # Positions of other weights must not stay.
    other.load_state_dict(layer.state_dict())
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(run(same, shape), expected)
    fresh = make().eval()
    fresh.load_state_dict(before)
    fresh.train()
    assert_close(run(fresh.eval(), shape), expected)


def test_positions_are_made_once_a_size():
    layer = trained(ACmix2d(6, 16))
    layer.switch_to_deploy()
    calls = []
    layer.conv_p.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        for size in ((5, 6), (5, 6), (7, 6), (5, 6)):
            layer(torch.rand(1, 6, *size))
    assert len(calls) == 2
    # What inference mode made must serve a backward pass too.
    layer(torch.rand(1, 6, 5, 6, requires_grad=True)).sum().backward()
    assert len(calls) == 2
    assert layer.double()(torch.rand(1, 6, 5, 6).double()).dtype == torch.float64
    assert len(calls) == 3


def test_deployed_layer_refuses_to_train():
    model = nn.Sequential(ACmix2d(6, 16), nn.ReLU())
    acmix.deploy(model)
    with pytest.raises(InputError, match="make a fresh model"):
        model.train()
    with pytest.raises(InputError, match="make a fresh model"):
        model[0].reset_parameters()


ATTACHED = {
    "spectral_norm": spectral_norm,
    "weight_norm": weight_norm,
    "parametrized": parametrizations.spectral_norm,
    "pruned": lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    "wrapped": nn.Sequential,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("attach", ATTACHED.values(), ids=ATTACHED)
def test_children_that_are_more_are_baked(attach):
    for make, shape, names in (
        (LAYERS["sliding"][0], IMAGE, ("conv2", "fc")),
        (LAYERS["window"][0], PIXELS, ("proj", "fc")),
    ):
        layer = trained(make())
        for name in names:
            setattr(layer, name, attach(getattr(layer, name)))
        layer.eval()
        expected = run(layer, shape)
        layer.switch_to_deploy()
        assert_close(run(layer, shape), expected)
        assert not any(module._forward_pre_hooks for module in layer.modules())


@pytest.mark.parametrize(
    "child",
    [nn.Sequential(nn.Conv2d(6, 16, 1), nn.ReLU()), nn.Conv2d(6, 16, 3, padding=1)],
    ids=["not linear", "reads its neighbours"],
)
def test_children_that_are_no_product_are_refused(child):
    layer = trained(ACmix2d(6, 16))
    layer.conv2 = nn.Sequential(child)
    names = set(layer.state_dict())
    with pytest.raises(InputError, match="conv2=Sequential: is no affine map"):
        layer.switch_to_deploy()
    assert set(layer.state_dict()) == names
    assert next(layer.parameters()).dtype == torch.float32


def test_norms_that_do_not_fit_are_refused():
    layer = ACmix2d(6, 16)
    for norm in (nn.BatchNorm2d(8).eval(), nn.BatchNorm2d(16), nn.GroupNorm(1, 16)):
        with pytest.raises(InputError, match=r"give a BatchNorm2d\(16\) in evaluation"):
            acmix.fuse_norm(layer, norm)
    with pytest.raises(InputError, match="no BatchNorm can follow a WindowACmix"):
        acmix.fuse_norm(WindowACmix(16, 4, 4), nn.BatchNorm2d(16).eval())
    with pytest.raises(InputError, match="give one with ACmix layers"):
        acmix.deploy(nn.Conv2d(3, 3, 1))


class Block(nn.Module):
    """A residual block as torchvision writes it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = ACmix2d(16, 16), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class PreActivation(nn.Module):
    """The norm is called before the convolution of its name."""

    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(6), ACmix2d(6, 16)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), ACmix2d(16, 16)

    def forward(self, x):
        return self.conv2(self.norm2(self.conv1(self.norm1(x))))


class Shared(nn.Module):
    """One layer, and a norm for each of its two uses."""

    def __init__(self):
        super().__init__()
        conv = ACmix2d(6, 6, num_heads=2)
        self.a = nn.Sequential(conv, nn.BatchNorm2d(6))
        self.b = nn.Sequential(conv, nn.BatchNorm2d(6))

    def forward(self, x):
        return self.b(self.a(x))


NETWORKS = {
    "sequence": (lambda: nn.Sequential(ACmix2d(6, 16), nn.BatchNorm2d(16), nn.ReLU()), 1),
    "patchwise": (lambda: nn.Sequential(VectorACmix(6, 16), nn.BatchNorm2d(16)), 1),
    "block": (Block, 1),
    "norm first": (PreActivation, 0),
    "shared": (Shared, 0),
    "norm after a ReLU": (
        lambda: nn.Sequential(ACmix2d(6, 16), nn.ReLU(), nn.BatchNorm2d(16)),
        0,
    ),
}


@pytest.mark.parametrize(("make", "folded"), NETWORKS.values(), ids=NETWORKS)
def test_norms_behind_layers_are_found(make, folded):
    model = trained(make())
    expected = run(model, IMAGE)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    inside = sum(isinstance(m, VectorACmix) for m in model.modules())
    assert acmix.deploy(model) is model
    assert_close(run(model, IMAGE), expected)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert norms - left == folded + inside


def mmcv_cnn():
    """mmcv's layers, where it is installed: the core needs torch alone."""
    return pytest.importorskip("mmcv.cnn", reason="pip install mmcv-lite")


FUSERS = {
    "mmcv": lambda model: mmcv_cnn().fuse_conv_bn(model),
    "torch.fx": lambda model: fx_fuse(copy.deepcopy(model)),
}


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("fuse", FUSERS.values(), ids=FUSERS)
@pytest.mark.parametrize("make", [make for make, _ in NETWORKS.values()], ids=NETWORKS)
def test_other_peoples_fusion_leaves_the_layers_right(make, fuse, deployed):
    model = trained(make())
    expected = run(model, IMAGE)
    if deployed:
        acmix.deploy(model)
    assert_close(run(fuse(model), IMAGE), expected)


def test_mmcv_finds_no_norm_for_a_convolution_before_a_deployed_layer():
    model = trained(nn.Sequential(nn.Conv2d(6, 16, 1), ACmix2d(16, 16), nn.BatchNorm2d(16)))
    expected = run(model, IMAGE)
    assert_close(run(mmcv_cnn().fuse_conv_bn(acmix.deploy(model)), IMAGE), expected)


def test_timm_deploys():
    utils = pytest.importorskip("timm.utils", reason="pip install timm")
    model = trained(nn.Sequential(ACmix2d(6, 16), nn.ReLU(), VectorACmix(16, 16)))
    expected = run(model, IMAGE)
    model = utils.reparameterize_model(model)
    assert model[0].deployed
    assert model[2].deployed
    assert_close(run(model, IMAGE), expected)


def test_norm_first_in_mmcvs_block_stays():
    order = ("norm", "conv", "act")
    block = mmcv_cnn().ConvModule(6, 6, 1, norm_cfg=dict(type="BN"), order=order)
    block.conv = ACmix2d(6, 6, num_heads=2)
    block = trained(block)
    expected = run(block, IMAGE)
    acmix.deploy(block)
    assert_close(run(block, IMAGE), expected)
