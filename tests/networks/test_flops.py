"""Counters of other projects: multiply-adds of a layer are those of its own ``multiply_adds``."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from acmix import ACmix2d
from acmix.backends import cpu
from acmix.complexity import count_multiply_adds
from layers import LAYERS
from user_networks import NETWORKS, build_network

needs_kernels = pytest.mark.skipif(
    bool(cpu.why_not("sliding_window_attention", torch.empty(0))),
    reason="the CPU kernels can't be built here",
)
# Three 1×1 convolutions, the position, the attention, the layer over the maps and the shifts.
PIXELS = 28 * 28
BY_HAND = PIXELS * (3 * 64 * 64 + 2 * 16 + 3 * 49 * 64 + 12 * 9 * 16 + 9 * 9 * 64)


def by_torch(model, *inputs):
    # Torch has no formula for its fused attention on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    return counter.get_total_flops() / 2


def by_thop(model, *inputs):
    thop = pytest.importorskip(
        "thop", reason="thop is not installed (pip install ultralytics-thop)"
    )
    from acmix.integrations import thop as integration

    integration.register()
    return thop.profile(model, inputs, verbose=False)[0]


def by_mmengine(model, *inputs):
    analysis = pytest.importorskip("mmengine.analysis", reason="pip install mmengine")
    from acmix.integrations import mmengine as integration

    integration.register()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return analysis.FlopAnalyzer(model, inputs).total()


COUNTERS = [pytest.param(by_torch, marks=needs_kernels), by_thop, by_mmengine]


@pytest.mark.parametrize("count", COUNTERS)
def test_a_layer_counts_what_is_written_in_the_paper(count):
    layer = ACmix2d(64, 64).eval()
    assert BY_HAND == 22_453_760
    assert layer.multiply_adds(28, 28) == count_multiply_adds(layer, (64, 28, 28)) == BY_HAND
    assert count(layer, torch.randn(1, 64, 28, 28)) == BY_HAND


@pytest.mark.parametrize("count", COUNTERS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_counted(name, count):
    layer = LAYERS[name].make().eval()
    inputs = LAYERS[name].inputs(12, 9, batch=1)
    assert count(layer, *inputs) == layer.count_call(*inputs) > 0


@pytest.mark.parametrize("count", COUNTERS)
def test_a_layer_is_counted_at_every_call(count):
    layer = ACmix2d(8, 8).eval()
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), layer, layer)
    expected = 2 * layer.multiply_adds(9, 7) + 64 * 9 * 7
    assert count(model, torch.randn(1, 8, 9, 7)) == expected
    assert count_multiply_adds(model, (8, 9, 7)) == expected


@needs_kernels
@pytest.mark.parametrize("name", ["ACmix2d", "patchwise"])
def test_a_gradient_counts_twice_the_operator(name):
    layer, inputs = LAYERS[name].make(), LAYERS[name].inputs(12, 9)
    with FlopCounterMode(display=False) as forward:
        out = layer(*inputs)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    once, twice = (c.get_flop_counts()["Global"] for c in (forward, backward))
    ours = {str(op): n for op, n in once.items() if str(op).startswith("acmix")}
    assert ours
    assert {f"{op}_backward": 2 * n for op, n in ours.items()}.items() <= {
        str(op): n for op, n in twice.items()
    }.items()


@pytest.mark.parametrize("name", NETWORKS)
def test_counters_agree_on_a_network(name):
    model = build_network(name)
    expected = count_multiply_adds(model, (3, 65, 65))
    assert by_torch(model, torch.randn(1, 3, 65, 65)) == expected
