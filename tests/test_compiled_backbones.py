"""Backbones under torch.compile, with its C++ compiler: one graph a size, values and gradients."""

import pytest
import torch

from acmix_pvt import ACmixPVT
from acmix_resnet import ACmixResNet
from acmix_san import ACmixSAN
from acmix_swin import ACmixSwinTransformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class ShallowSAN(ACmixSAN):
    arch_settings = {10: (1, 1)}


# Two stages each, since compiling takes as long as there are kernels.
SHALLOW = {
    "resnet": lambda **options: ACmixResNet(
        26,
        stem_channels=8,
        base_channels=4,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        **options,
    ),
    "san": lambda **options: ShallowSAN(
        10, widths=(32, 32), kernels=(3, 5), stem_channels=8, **options
    ),
    "pvt": lambda **options: ACmixPVT(
        dict(
            embed_dims=[8, 16],
            depths=[1, 1],
            num_heads=[1, 2],
            mlp_ratios=[2, 2],
            sr_ratios=[4, 1],
        ),
        img_size=32,
        out_type="featmap",
        drop_path_rate=0.0,
        **options,
    ),
    "swin": lambda **options: ACmixSwinTransformer(
        dict(embed_dims=8, depths=[1, 2], num_heads=[1, 2]), drop_path_rate=0.0, **options
    ),
}


# One step always, with all that a step may have; the others in a thorough run.
THOROUGH = [pytest.param(name, marks=pytest.mark.thorough) for name in SHALLOW]
STEPS = [
    ("resnet", True),
    *(pytest.param(name, True, marks=pytest.mark.thorough) for name in ("san", "pvt", "swin")),
    *(pytest.param(name, False, marks=pytest.mark.thorough) for name in SHALLOW),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(run, backbone, x):
    """Maps and gradients of one training step."""
    backbone.zero_grad()
    maps = run(x)
    sum(m.float().square().mean() for m in maps).backward()
    return [m.detach() for m in maps], [p.grad for p in backbone.parameters()]


@pytest.mark.parametrize(("name", "with_cp"), STEPS)
def test_training_step_is_that_of_eager_mode(name, with_cp):
    backbone = SHALLOW[name](out_indices=(0, 1), with_cp=with_cp).double()
    compiled = torch.compile(backbone, fullgraph=True)
    x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    torch.testing.assert_close(step(compiled, backbone, x), step(backbone, backbone, x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        step(compiled, backbone, x)


def distance(mine, theirs):
    """Of two lists of tensors, as if each were one vector."""
    return sum((a.float() - b.float()).square().sum() for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", THOROUGH)
def test_training_step_under_autocast_channels_last(name):
    """Twice the error of eager mode at most, whose gradients of a few channels are 40 % off."""
    torch.manual_seed(0)
    backbone = SHALLOW[name](out_indices=(0, 1)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 48).to(memory_format=torch.channels_last)
    exact = step(backbone, backbone, x)
    with torch.autocast("cpu", torch.bfloat16):
        eager = step(backbone, backbone, x)
        compiled = step(torch.compile(backbone, fullgraph=True), backbone, x)
    for kind in range(2):  # maps, gradients
        budget = 2**2 * distance(eager[kind], exact[kind])
        assert distance(compiled[kind], exact[kind]) <= budget


@pytest.mark.parametrize("name", THOROUGH)
def test_maps_of_two_sizes_take_two_graphs_at_most(name):
    backbone = SHALLOW[name](out_indices=(0, 1)).eval()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(backbone, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((64, 48), (50, 91)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), backbone(x), rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
