"""The kernels' own text on the CPU, as the registered operators call it, against the reference."""

from functools import partial

import pytest
import torch

import acmix
from acmix.backends.cuda import convolution_tiles, tiles
from operator_contract import SMALL, RegisteredContract
from operators import Aggregation, Attention, Case, Convolution, Difference, Paths
from support import gradients


@pytest.mark.usefixtures("emulated")
class CudaContract(RegisteredContract):
    """Tests of an operator with CUDA kernels."""

    backends = ("cuda",)
    registered = "cuda"

    @pytest.mark.parametrize("order", [1, 2])
    def test_order_of_threads_does_not_matter(self, emulate, order):
        case = Case((17, 12), batch=1, heads=2)
        inputs = self.operator.inputs(case, torch.float32)
        results = []
        for chosen in (0, order):
            emulate(order=chosen)
            results.append(gradients(self.operator.on(case, "cuda"), *inputs))
        torch.testing.assert_close(*results, rtol=0, atol=0)


class TestAttention(CudaContract):
    operator = Attention()
    # 7x7 windows have no tiled kernel in double precision.
    sizes = {
        "tiles of seven": Case((13, 11), heads=2, depth=16),
        "tiles of seven, stride": Case((13, 11), stride=2, heads=2, depth=16),
        "tiles of three": Case((13, 11), 3, heads=2, depth=16),
        "tiles cut to the image": Case((3, 2), heads=2, depth=16),
        "any window": Case((13, 11), 5, dilation=2, heads=2, depth=16),
    }


class TestAggregation(CudaContract):
    operator = Aggregation()
    sizes = {
        "kernel of seven": Case((13, 11), stride=2, heads=2, depth=8),
        "any kernel": Case((13, 11), 9, heads=2, depth=8),
    }


class TestConvolution(CudaContract):
    operator = Convolution()
    sizes = {
        "folded": Case((13, 11), heads=4, depth=8),
        "folded, stride": Case((13, 11), stride=2, heads=3, depth=8),
        "layer": Case((13, 11), heads=6, depth=8),
        "layer, any window": Case((13, 11), stride=3, heads=5, depth=4, kernel_conv=5),
    }
    registrations = {"folded": SMALL, "layer": Case((5, 6), stride=2, heads=5, depth=2)}

    def test_channels_that_share_a_block(self, monkeypatch):
        # The last block has fewer of them than the others.
        monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", 1)
        convolution_tiles.cut_path.cache_clear()
        for heads in (2, 5):
            self.operator.check(Case((5, 7), heads=heads, depth=7), "cuda")
        convolution_tiles.cut_path.cache_clear()

    def test_layer_that_is_folded_already(self):
        qkv, _, kernels, _ = self.operator.inputs(Case((9, 7), heads=3))
        kernels, nothing = torch.cat([kernels, kernels[:, :1]], 1), kernels.new_empty(0, 9)
        results = []
        for backend in ("cuda", "torch"):
            run = partial(acmix.convolution_path, fc_bias=nothing[:, 0], stride=2, backend=backend)
            results.append(gradients(lambda x, w, run=run: run(x, nothing, w), qkv, kernels))
        torch.testing.assert_close(*results)

    def test_maps_of_many_tiles(self):
        for window in (dict(heads=4), dict(heads=5, stride=2), dict(heads=9)):
            self.operator.check_budget(Case((37, 70), depth=2, **window), "cuda", torch.float32)


class TestDifference(CudaContract):
    operator = Difference()
    sizes = {
        "kernel of seven": Case((13, 11), stride=2, depth=4),
        "any kernel": Case((13, 11), 9, depth=4),
    }


class TestPaths(CudaContract):
    operator = Paths()
    sizes = {
        "tiles": Case((13, 11), heads=4, depth=8),
        "any window, layer": Case((13, 11), 5, stride=3, dilation=2, heads=5, depth=8),
    }
    registrations = {"small": SMALL}


@pytest.mark.parametrize("enough_blocks", [1, 264])
@pytest.mark.parametrize(
    "case",
    [
        Case((14, 14), heads=4, depth=16),
        Case((33, 18), heads=1, depth=17),
        Case((1, 1), heads=70, depth=1),
    ],
    ids=["even", "ragged", "many planes"],
)
def test_attention_of_many_tiles(emulated, monkeypatch, case, enough_blocks):
    monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", enough_blocks)
    Attention().check_budget(case, "cuda", torch.float32)


@pytest.mark.parametrize(
    "case",
    [
        Case((7, 7), 3, heads=4, depth=33),
        Case((5, 40), 3, stride=2, heads=3, depth=128, batch=1),
        Case((4, 5), 3, heads=1, depth=256, batch=1),
    ],
    ids=lambda case: str(case.depth),
)
def test_attention_of_many_channels(emulated, case):
    Attention().check(case, "cuda")


def test_log_sum_exp_stays_finite_where_logits_are_large(emulated):
    case = Case((9, 9), batch=1, heads=1, depth=4)
    inputs = [300 * x for x in Attention().inputs(case, torch.float16)]
    out, grads = gradients(Attention().on(case, "cuda"), *inputs)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
