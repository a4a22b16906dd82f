"""Attention on maps of bfloat16 by the matrix unit of AMX, and by arrays that stand in for it."""

import dataclasses

import pytest
import torch

import acmix
from acmix.backends.cpu import library
from operators import Attention, Case, Mix, stored

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(library.problem()), reason="the CPU kernels can't be built here"),
]

# Tiles of two rows of eight queries, filled or not; parts of 16 and of 32 channels; more sums than
# tiles for them; rows of keys that are even or odd in number; bands of rows for several threads.
FITTING = {
    "one column": Case((7, 7), heads=2, depth=32),
    "part of a column": Case((9, 21), depth=16),
    "odd rows": Case((13, 8), 5, depth=48, heads=1),
    "stride of two": Case((12, 19), stride=2, depth=64, batch=1),
    "stride of three": Case((11, 10), 5, stride=3, depth=16),
    "stride of four": Case((8, 30), 3, stride=4, depth=80, batch=1, heads=1),
    "bands": Case((41, 10), 7, depth=16, batch=1, heads=1),
    "no position": Case((6, 9), 3, depth=32, without=("position",)),
    "no images": Case((7, 7), batch=0, depth=16),
}
# What is left to the other kernels.
OTHERS = {
    "large windows": Case((11, 12), 9, depth=16),
    "dilation": Case((9, 8), 3, dilation=2, depth=16),
    "long stride": Case((9, 12), 3, stride=5, depth=16),
    "cut to the image": Case((3, 9), 7, depth=16),
    "one tap": Case((5, 6), 1, depth=16),
}


@pytest.fixture(params=["amx", "emulated"])
def tiled(request, monkeypatch):
    """A library that has tiles, in use."""
    if request.param == "emulated":
        loaded = request.getfixturevalue("wide")
    else:
        loaded = library.load()
        if "amx" not in loaded.isas:
            pytest.skip("this machine has no AMX")
    monkeypatch.setattr(loaded, "isa", "amx")
    monkeypatch.setattr(library, "load", lambda: loaded)
    return loaded


def without(loaded):
    """The variant that has all other kernels."""
    return "avx512" if "avx512" in loaded.isas else "baseline"


def attend(case, maps=None):
    """The attention of a case, on maps of bfloat16 that are stored channels last."""
    if maps is None:
        maps = (x.bfloat16() for x in Attention().inputs(case)[:3])
    with torch.no_grad():
        window = Attention().options(case)
        maps = (stored(x, "channels_last") for x in maps)
        return acmix.sliding_window_attention(*maps, **window)


@pytest.mark.parametrize("case", FITTING.values(), ids=FITTING)
def test_errors_keep_to_the_budget(tiled, case):
    # Of nothing there is no error.
    case = dataclasses.replace(case, layout="channels_last", batch=max(case.batch, 1))
    Attention().check_budget(case, "cpu", torch.bfloat16)
    # Both paths have a position.
    Mix().check_budget(dataclasses.replace(case, without=()), "cpu", torch.bfloat16)


@pytest.mark.parametrize("case", FITTING.values(), ids=FITTING)
def test_tiles_are_used_where_they_fit(tiled, monkeypatch, case):
    ours = attend(case)
    monkeypatch.setattr(tiled, "isa", without(tiled))
    theirs = attend(case)
    torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)
    # The weights were rounded: it would be a wonder if no sum showed it.
    assert case.batch == 0 or not torch.equal(ours, theirs)


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_other_calls_are_left_to_the_other_kernels(tiled, monkeypatch, case):
    maps = [x.bfloat16() for x in Attention().inputs(case)[:3]]
    calls = [maps, [x.float() for x in maps]]
    ours = [attend(case, maps) for maps in calls]
    monkeypatch.setattr(tiled, "isa", without(tiled))
    for result, maps in zip(ours, calls, strict=True):
        torch.testing.assert_close(result, attend(case, maps), rtol=0, atol=0)


@pytest.mark.parametrize("case", FITTING.values(), ids=FITTING)
def test_result_does_not_depend_on_the_threads(tiled, case):
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(attend(case))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_keys_that_are_not_finite_spoil_their_windows_alone(tiled, value):
    case = Case((13, 20), 5, batch=1, heads=1, depth=16)
    maps = [x.bfloat16() for x in Attention().inputs(case)[:3]]
    maps[1][0, 0, 3, 6, 9] = value
    spoilt = attend(case, maps).isnan().any(dim=2)[0, 0]
    expected = attend(case, [x.float() for x in maps]).isnan().any(dim=2)[0, 0]
    assert torch.equal(spoilt, expected)
    assert spoilt.any()
    assert not spoilt[:4].any()


def test_values_that_are_not_finite_spoil_no_more_than_their_tiles(tiled):
    case = Case((21, 37), 5, batch=1, heads=2, depth=16)
    maps = [x.bfloat16() for x in Attention().inputs(case)[:3]]
    maps[2][0, 0, 3, 10, 17] = float("nan")
    spoilt = attend(case, maps).isnan().any(dim=2)[0]
    assert spoilt[0, 8:13, 15:20].all()
    # A tile of two by eight queries sees two rows and seven columns more than a window does.
    rows, columns = (x.nonzero() for x in (spoilt[0].any(dim=1), spoilt[0].any(dim=0)))
    assert rows.min() >= 6
    assert rows.max() <= 14
    assert columns.min() >= 8
    assert columns.max() <= 26
    assert not spoilt[1].any()


def test_far_logits_do_not_overflow(tiled):
    case = Case((9, 9), batch=1, heads=1, depth=32)
    maps = [x.bfloat16() for x in Attention().inputs(case)[:3]]
    maps = [maps[0] * 100, maps[1] * 100, maps[2]]
    expected = attend(case, [x.float() for x in maps]).bfloat16()
    torch.testing.assert_close(attend(case, maps), expected, rtol=2**-6, atol=2**-6)


def test_layer_in_autocast_is_that_without_tiles(tiled, monkeypatch):
    layer = acmix.ACmix2d(32, 64).eval()
    x = torch.randn(2, 32, 14, 15).to(memory_format=torch.channels_last)
    results = []
    for isa in ("amx", without(tiled)):
        monkeypatch.setattr(tiled, "isa", isa)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            results.append(layer(x))
    torch.testing.assert_close(*results, rtol=2**-6, atol=2**-7)
    assert not torch.equal(*results)
