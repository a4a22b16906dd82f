"""torch.export: programs of plain operators that serve any batch, height and width."""

import functools

import pytest
import torch

import acmix
from acmix.mm.formats import OPEN
from exporting import SIZES, OnMaps, assert_equal_at, backbone
from families import FAMILIES

pytestmark = pytest.mark.slow

# Sizes of more than one window, and of more than one pixel after a reduction or a stride: torch
# makes a guard of that, for convolutions of a stride too.
LARGER = [size for size in SIZES if min(size) > 8]


def exported(model, x, **options):
    return torch.export.export(model, (x,), dynamic_shapes=(OPEN,), **options)


@functools.cache
def layer_and_program(name, **options):
    """A layer, and its program that serves any size; made once for all tests of a process."""
    layer = OnMaps.of(name, **options)
    return layer, exported(layer, layer.example(11, 10))


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("ACmix2d", {}, SIZES),
        ("ACmix2d", dict(dilation=2, kernel_conv=5), SIZES),
        ("ACmix2d", dict(stride=2, dilation=3, shift="tensor"), LARGER),
        ("patchwise", {}, SIZES),
        ("pairwise", {}, SIZES),
        ("WindowACmix", {}, LARGER),
        ("GlobalACmix", {}, LARGER),
    ],
    ids=str,
)
def test_layer_runs_at_any_size(name, options, sizes):
    layer, program = layer_and_program(name, **options)
    assert not [node for node in program.graph.nodes if "acmix" in str(node.target)]
    assert_equal_at(program.module(), layer, sizes, layer.channels)


@pytest.mark.parametrize("name", ["WindowACmix", "GlobalACmix"])
def test_a_size_that_is_not_served_is_refused(name):
    layer, program = layer_and_program(name)
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(layer.example(2, 2))


def test_strict_export_runs_at_any_size():
    layer = OnMaps.of("ACmix2d")
    program = exported(layer, layer.example(11, 10), strict=True)
    assert_equal_at(program.module(), layer, SIZES, layer.channels)


def test_example_of_fixed_size_keeps_the_tiles_of_that_size():
    layer, free = layer_and_program("ACmix2d")
    x = layer.example(11, 10)
    fixed = torch.export.export(layer, (x,))
    assert 3 * len(fixed.graph.nodes) < 2 * len(free.graph.nodes)
    torch.testing.assert_close(fixed.module()(x), layer(x))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_named_backend_is_refused(backend):
    layer = OnMaps.of("ACmix2d", backend=backend)
    with pytest.raises(acmix.errors.BackendError, match=f"{backend}: exported programs and traces"):
        torch.export.export(layer, (layer.example(11, 10),))


def test_export_is_the_same_with_and_without_gradients():
    layer, program = layer_and_program("ACmix2d")
    with torch.no_grad():
        without = exported(layer, layer.example(11, 10))
    targets = [[str(n.target) for n in p.graph.nodes] for p in (without, program)]
    assert targets[0] == targets[1]


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
def test_backbone_runs_at_any_size(name):
    # More than one window of Swin on the smallest map, as its guards ask; 33 pixels do for others.
    sizes = [(288, 320), (257, 300)] + ([] if name == "swin" else [(97, 130)])
    model = backbone(name)
    program = exported(model, torch.randn(2, 3, 288, 320))
    assert_equal_at(program.module(), model, sizes)
