"""torch.jit.trace and what stands on it: traces serve other sizes than the example's."""

import pytest
import torch
from torch import nn

import acmix
from exporting import IMAGES, SIZES, OnMaps, assert_equal_at, backbone
from layers import LAYERS

# A branch that a trace would freeze is a warning of the tracer.
no_warning = pytest.mark.filterwarnings("error::torch.jit.TracerWarning")


@pytest.mark.parametrize("deployed", [False, True], ids=["trained", "deployed"])
@pytest.mark.parametrize("name", LAYERS)
@no_warning
def test_layer_runs_at_other_sizes(name, deployed):
    layer = OnMaps.of(name)
    layer = acmix.deploy(layer) if deployed else layer
    traced = torch.jit.trace(layer, layer.example(11, 10))
    assert "acmix::" not in str(traced.inlined_graph)
    assert_equal_at(traced, layer, SIZES, layer.channels)


@pytest.mark.parametrize(
    "options",
    [
        dict(stride=2, dilation=2, kernel_att=5),
        dict(stride=2, dilation=3, shift="tensor"),
        dict(dilation=2, kernel_conv=5, shift="fixed"),
        dict(stride=3, mix="attention"),
    ],
    ids=str,
)
@no_warning
def test_acmix2d_with_options_runs_at_other_sizes(options):
    layer = OnMaps.of("ACmix2d", **options)
    traced = torch.jit.trace(layer, layer.example(11, 10))
    assert_equal_at(traced, layer, SIZES, layer.channels)


@no_warning
def test_traced_layer_trains_as_the_layer():
    layer = OnMaps.of("ACmix2d")
    traced = torch.jit.trace(layer, layer.example(11, 10))
    x = layer.example(3, 9)
    grads = [
        torch.autograd.grad(run(x).square().sum(), list(layer.parameters()))
        for run in (traced, layer)
    ]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["pvt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet", "san"))]
)
@no_warning
def test_backbone_runs_at_other_sizes(name):
    assert_traces(backbone(name))


@pytest.mark.slow
def test_swin_runs_at_other_sizes():
    # It warns: MMCV's patch merging asks whether there are as many tokens as pixels.
    assert_traces(backbone("swin"))


def assert_traces(model):
    traced = torch.jit.trace(model, torch.randn(2, 3, 96, 128), check_trace=False)
    assert_equal_at(traced, model, IMAGES)


def test_a_size_that_is_a_number_is_kept_to():
    layer = LAYERS["GlobalACmix"].make().eval()
    x, size = LAYERS["GlobalACmix"].inputs(8, 6)

    class OfOneSize(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, size)

    traced = torch.jit.trace(OfOneSize(), x)
    torch.testing.assert_close(traced(x), layer(x, size))
    with pytest.raises(RuntimeError, match="unflatten|reshape|shape"):
        traced(LAYERS["GlobalACmix"].inputs(8, 8)[0])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_named_backend_is_refused(backend):
    layer = OnMaps.of("ACmix2d", backend=backend)
    with pytest.raises(acmix.errors.BackendError, match=f"{backend}: exported programs and traces"):
        torch.jit.trace(layer, layer.example(11, 10))


@no_warning
def test_wrong_channels_are_named():
    layer = OnMaps.of("ACmix2d")
    with pytest.raises(acmix.InputError, match="input shape=.*give .B, 6, H, W."):
        torch.jit.trace(layer, torch.randn(2, 5, 9, 7))


@pytest.mark.slow
def test_tensorboard_draws_a_backbone(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="no tensorboard here")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(nn.Sequential(backbone("resnet"), _First()), torch.randn(1, 3, 64, 64))
    (file,) = tmp_path.iterdir()
    assert b"ACmix2d[conv2]" in file.read_bytes()


@pytest.mark.parametrize("name", [pytest.param("resnet", marks=pytest.mark.slow), "pvt"])
def test_mmengine_counts_a_backbone(name):
    from mmengine.analysis import get_model_complexity_info

    counts = get_model_complexity_info(backbone(name), (3, 64, 64), show_table=False)
    assert counts["flops"] > 0
    assert counts["params"] == sum(p.numel() for p in backbone(name).parameters())


class _First(nn.Module):
    def forward(self, maps):
        return maps[0]
