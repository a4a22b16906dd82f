"""ONNX files by both of torch's exporters, in onnxruntime, at other sizes than the example's."""

import pytest
import torch

from acmix import VectorACmix
from acmix.mm.formats import Onnx
from exporting import (
    IMAGES,
    SIZES,
    OnMaps,
    assert_equal_at,
    backbone,
    in_onnxruntime,
)
from families import FAMILIES
from layers import LAYERS

by_both = pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "exported"]
)


# At most, of a file by the newer exporter that serves any size.
NODES = {"ACmix2d": 230}


@by_both
@pytest.mark.parametrize("name", LAYERS)
def test_layer_runs_at_any_size(name, dynamo, tmp_path):
    layer, path = OnMaps.of(name), tmp_path / "layer.onnx"
    run = in_onnxruntime(layer, layer.example(11, 10), path, dynamo=dynamo)
    assert_equal_at(run, layer, SIZES, layer.channels)
    if dynamo and name in NODES:
        assert Onnx().nodes(path) <= NODES[name]


@by_both
@pytest.mark.parametrize(
    "options",
    [dict(stride=2, dilation=2, kernel_att=5), dict(stride=2, dilation=3, shift="tensor")],
    ids=str,
)
def test_acmix2d_with_options_runs_at_any_size(options, dynamo, tmp_path):
    layer, path = OnMaps.of("ACmix2d", **options), tmp_path / "layer.onnx"
    run = in_onnxruntime(layer, layer.example(11, 10), path, dynamo=dynamo)
    assert_equal_at(run, layer, SIZES, layer.channels)


# By the newer exporter, which takes as long for either type, one of each class of attention.
IN_HALF = [(name, False) for name in LAYERS] + [
    pytest.param(name, True, marks=pytest.mark.slow)
    for name in ("ACmix2d", "WindowACmix", "pairwise")
]


@pytest.mark.parametrize(("name", "dynamo"), IN_HALF)
def test_layer_runs_in_half_precision(name, dynamo, tmp_path):
    layer, path = OnMaps.of(name), tmp_path / "layer.onnx"
    x = layer.example(13, 9)
    expected = layer(x)
    layer = layer.half()
    eager = layer(x.half()).float()
    (actual,) = in_onnxruntime(layer, layer.example(11, 10).half(), path, dynamo=dynamo)(x.half())
    assert actual.dtype == torch.float16
    budget = 2 * (eager - expected).abs().max() + 2e-3 * expected.abs().max()
    assert (actual.float() - expected).abs().max() <= budget


@pytest.mark.slow
def test_a_file_of_one_size_has_no_more_nodes_than_its_tiles_need(tmp_path):
    layer, path = OnMaps.of("ACmix2d"), tmp_path / "layer.onnx"
    in_onnxruntime(layer, layer.example(11, 10), path, dynamo=True, any_size=False)
    assert Onnx().nodes(path) <= 60


@pytest.mark.slow
def test_a_neighbourhood_is_a_few_nodes(tmp_path):
    layer, path = OnMaps(VectorACmix(6, 16, 7)), tmp_path / "layer.onnx"
    in_onnxruntime(layer, layer.example(11, 10), path, dynamo=True)
    assert Onnx().nodes(path) <= 120  # of 49 neighbours


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize("name", FAMILIES)
def test_backbone_runs_at_any_size(name, dynamo, tmp_path):
    model, path = backbone(name), tmp_path / "backbone.onnx"
    run = in_onnxruntime(model, torch.randn(2, 3, 96, 128), path, dynamo=dynamo)
    assert_equal_at(run, model, IMAGES)
