"""Checks of calls: what has passed once is remembered, and nothing else."""

from functools import partial

import pytest
import torch

from acmix import (
    InputError,
    checks,
    convolution_path,
    map_window_attention,
    mixed_paths,
    sliding_window_attention,
    sliding_window_paths,
)
from acmix.checks import once_a_signature


def maps(*shape):
    return torch.randn(shape or (1, 2, 4, 5, 6))


def test_a_signature_is_checked_once():
    calls = []
    check = once_a_signature(lambda *args: calls.append(args))
    x = maps()
    for _ in range(3):
        check(x, 3, None)
        check(maps(), 3, None)
    assert len(calls) == 1
    others = (x.double(), 3, None), (maps(2, 2, 4, 5, 6), 3, None), (x, 5, None), (x, 3, x)
    for other in (*others, (x.to("meta"), 3, None), (x, 3.0, None)):
        check(*other)
    assert len(calls) == 7
    check([3])
    check([3])
    assert len(calls) == 9  # a list has no hash


def test_what_has_not_passed_is_refused_again():
    q = maps()
    for _ in range(2):
        with pytest.raises(InputError, match="kernel_size=4"):
            sliding_window_attention(q, q, q, kernel_size=4)


@pytest.mark.parametrize("stride", [True, 1.0])
def test_an_equal_number_of_another_type_is_refused(stride):
    q = maps()
    sliding_window_attention(q, q, q, kernel_size=3, stride=1)
    with pytest.raises(InputError, match=f"stride={stride}"):
        sliding_window_attention(q, q, q, kernel_size=3, stride=stride)


def test_what_passes_under_autocast_alone_is_refused_without():
    qkv, position = maps(1, 12 * 4, 5, 6), maps(4, 5, 6)
    weights = maps(9, 12).double(), maps(16, 9, 3, 3).double()
    with torch.autocast("cpu", torch.bfloat16):
        sliding_window_paths(qkv, position, *weights, kernel_size=3)
    with pytest.raises(InputError, match="fc_weight"):
        sliding_window_paths(qkv, position, *weights, kernel_size=3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["fc_weight", "kernels", "fc_bias", "rest", "alpha", "bias"])
def test_tensors_on_another_device_are_named(name, autocast):
    """A kernel would read what is no address of its own memory."""
    qkv, windows = maps(1, 12 * 4, 5, 6), dict(qkv=maps(1, 4, 4, 12), bias=maps(2, 4, 4))
    path = dict(qkv=qkv, fc_weight=maps(9, 12), kernels=maps(16, 9, 3, 3), fc_bias=maps(9))
    mixed = dict(qkv=qkv, position=maps(4, 5, 6), alpha=maps(1), fc_weight=path["fc_weight"])
    mixed["kernels"] = path["kernels"]
    split = dict(path, qkv=qkv[:, :16], rest=qkv[:, 16:])
    calls = [
        (convolution_path, split),
        (mixed_paths, mixed),
        (partial(map_window_attention, window_size=(2, 2)), windows),
    ]
    for call, tensors in calls:
        if name not in tensors:
            continue
        wrong = {**tensors, name: tensors[name].to("meta")}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            call(**tensors)
            with pytest.raises(InputError, match=f"{name}=.*meta.*like qkv"):
                call(**wrong)


def test_endless_sizes_are_forgotten(monkeypatch):
    monkeypatch.setattr(checks, "_MOST", 3)
    calls = []
    check = once_a_signature(calls.append)
    for size in (*range(5), 4, 0):
        check(size)
    assert calls == [0, 1, 2, 3, 4, 0]
