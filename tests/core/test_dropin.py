"""ACmix2d in place of the convolutions of a network: what is replaced and copied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import acmix
from acmix import InputError, replace_convolutions
from acmix.complexity import count_parameters

pytestmark = pytest.mark.filterwarnings("ignore:nothing is replaced")


def conv(channels=8, out_channels=8, kernel_size=3, **options):
    options.setdefault("padding", kernel_size // 2)
    return nn.Conv2d(channels, out_channels, kernel_size, **options)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from([3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 3, 4]),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    bias=st.booleans(),
)
def test_layer_starts_as_a_convolution_of_few_input_channels(
    kernel, stride, dilation, heads, size, bias
):
    geometry = dict(stride=stride, dilation=dilation, padding=dilation * (kernel // 2))
    plain = nn.Conv2d(5, 12, kernel, bias=bias, **geometry)
    model = nn.Sequential(plain)
    (row,) = replace_convolutions(
        model, num_heads=heads, kernel_att=3, kernel_sizes=(kernel,)
    ).replaced
    x = torch.randn(2, 5, *size)
    expected, out = plain(x), model(x)
    assert out.shape == expected.shape
    assert row.before == sum(p.numel() for p in plain.parameters())
    assert row.after == sum(p.numel() for p in model.parameters())
    assert (row.error is None) == (dilation > 1)
    # Five input channels: the rank of two heads and a bias.
    if dilation == 1 and heads > 1:
        assert row.error < 1e-6
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mix", ["alpha_beta", "alpha_complement", "alpha_one", "convolution"])
@pytest.mark.parametrize("heads", [1, 4])
def test_error_is_the_distance_of_the_convolution_that_the_layer_starts_as(mix, heads):
    plain = conv(32, 16, bias=False)
    model = nn.Sequential(plain)
    (row,) = replace_convolutions(model, num_heads=heads, mix=mix)
    # One impulse a channel and image: the output is the kernel, turned around.
    impulses = torch.zeros(32, 32, 3, 3)
    impulses[range(32), range(32), 1, 1] = 1
    start = model(impulses).flip(2, 3).transpose(0, 1)
    error = (start - plain.weight).norm() / plain.weight.norm()
    assert row.error == pytest.approx(error.item(), abs=1e-5)
    assert 0 < row.error < 1


@pytest.mark.parametrize(
    "options", [dict(mix="attention"), dict(mix="one_one"), dict(shift="fixed")]
)
def test_layers_that_cannot_start_as_a_convolution_start_fresh(options):
    model = nn.Sequential(conv())
    (row,) = replace_convolutions(model, **options)
    assert row.error is None
    assert "fresh" in str(row)
    assert model(torch.rand(1, 8, 5, 5)).isfinite().all()


KEPT = {
    "groups=2": lambda: conv(groups=2),
    "padding=(0, 0)": lambda: conv(padding=0),
    "padding=valid": lambda: conv(padding="valid"),
    "padding_mode=reflect": lambda: conv(padding_mode="reflect"),
    "stride=(1, 2)": lambda: conv(stride=(1, 2)),
    "dilation=(1, 2)": lambda: conv(dilation=(1, 2), padding=(1, 2)),
    "num_heads=4 does not divide 30": lambda: conv(out_channels=30),
    "not of kernel_sizes=(3,)": lambda: conv(kernel_size=5),
    "a LazyConv2d": lambda: nn.LazyConv2d(8, 3, padding=1),
    "a ParametrizedConv2d": lambda: parametrizations.spectral_norm(conv()),
    "has hooks": lambda: spectral_norm(conv()),
    "not chosen": lambda: conv(channels=3),
}


@pytest.mark.parametrize("reason", KEPT)
def test_other_convolutions_are_kept_with_the_reason(reason):
    model = nn.Sequential(KEPT[reason]())
    before = model[0]
    report = replace_convolutions(model, where=lambda name, conv: conv.in_channels != 3)
    assert model[0] is before
    assert [row.kept for row in report] == [reason]
    assert reason in str(report)
    assert not report.replaced


def test_pruned_convolution_is_kept():
    model = nn.Sequential(conv())
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    assert replace_convolutions(model)[0].kept == "has hooks"


def test_1x1_convolutions_and_acmix_layers_are_left_alone():
    pairwise = acmix.VectorACmix(8, 16, attention="pairwise")
    assert replace_convolutions(nn.Sequential(conv(kernel_size=1), pairwise)) == []
    model = nn.Sequential(acmix.GlobalACmix(8, 2, sr_ratio=3), conv())
    assert len(replace_convolutions(model)) == 1
    assert len(replace_convolutions(model)) == 0
    assert isinstance(model[0].sr, nn.Conv2d)


def test_shared_convolution_is_one_layer_everywhere():
    shared = conv()
    model = nn.ModuleDict(dict(one=shared, block=nn.Sequential(conv(), shared, nn.ReLU(), shared)))
    report = replace_convolutions(model)
    assert [row.names for row in report] == [("one", "block.1", "block.3"), ("block.0",)]
    assert model["one"] is model["block"][1] is model["block"][3]
    assert sum(row.after for row in report) == sum(p.numel() for p in model.parameters())


def test_dtype_modes_and_frozen_weights_are_kept():
    model = nn.Sequential(conv(), conv()).double().eval()
    model[0].requires_grad_(False)
    replace_convolutions(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())
    assert [any(p.requires_grad for p in layer.parameters()) for layer in model] == [False, True]


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        (conv(), {}, "model=Conv2d: give the module that holds it"),
        (nn.Sequential(conv()), dict(where="layer1"), "where=layer1: give a function"),
        (nn.Sequential(conv()), dict(kernel_sizes=3), "kernel_sizes=3: give a tuple"),
        (nn.Sequential(conv()), dict(kernel_sizes=(4,)), "kernel_sizes=4: give an odd size"),
        (nn.Sequential(conv()), dict(num_heads=0), "num_heads=0"),
        (nn.Sequential(conv()), dict(mix="alpha"), "mix='alpha'"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(model, options, error):
    before = list(model.modules())
    with pytest.raises(InputError, match=error):
        replace_convolutions(model, **options)
    assert list(model.modules()) == before


@pytest.fixture
def models():
    """torchvision's models, where it is installed: the core needs torch alone."""
    return pytest.importorskip("torchvision", reason="pip install torchvision").models


def test_resnet18_trains(models):
    model = models.resnet18(num_classes=5)
    report = replace_convolutions(model, kernel_att=3)
    assert len(report.replaced) == 16
    assert [row.names for row in report if row.kept] == [("conv1",)]
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 65, 97)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    # With alpha = 0 the attention learns from the second step on.
    model(torch.randn(2, 3, 65, 97)).square().mean().backward()
    assert model.layer1[0].conv1.rate1.item() != 0


def test_resnet18_state_dict_goes_there_and_back(models):
    model, other = models.resnet18(num_classes=5), models.resnet18(num_classes=5)
    replace_convolutions(model, kernel_att=3)
    replace_convolutions(other, kernel_att=3, copy_weights=False)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_resnet50_becomes_the_papers(models):
    model = models.resnet50()
    replace_convolutions(model, copy_weights=False)
    assert count_parameters(model) == 18_333_976
