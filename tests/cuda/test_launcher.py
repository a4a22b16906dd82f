"""What stands between torch and the kernels: choice, checks, tiles, launch arguments, indices."""

import math
import subprocess
import sys

import numpy
import pytest
import torch

import acmix
from acmix import ops
from acmix.backends import cuda
from acmix.backends.cuda import launcher, sources, tiles


@pytest.mark.slow
def test_import_needs_torch_alone():
    code = (
        "import sys; sys.modules['cupy'] = None; import acmix.backends.cuda as b, torch;"
        "print(b.why_not('sliding_window_attention', torch.zeros(1)));"
        # It takes as long to import as torch.
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "not on a CUDA device" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_reasons_name_what_is_wrong_with_the_tensor():
    op, x = "sliding_window_attention", torch.zeros(1, dtype=torch.int32)
    dtype, device = cuda.why_not(op, x)
    assert "torch.int32 is not one of torch.float32, torch.float64" in dtype
    assert "on cpu" in device


class OnCuda:
    """What ``why_not`` asks of a tensor; there is no device to put a real one on."""

    device, dtype = torch.device("cuda"), torch.float32


def test_reasons_name_the_package_to_install(monkeypatch):
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    for version, package in [("12.8", "cupy-cuda12x"), ("13.0", "cupy-cuda13x")]:
        monkeypatch.setattr(torch.version, "cuda", version)
        (cupy,) = cuda.why_not("sliding_window_attention", OnCuda())
        assert f"pip install {package}" in cupy
    monkeypatch.setattr(torch.version, "cuda", None)
    (cupy,) = cuda.why_not("sliding_window_attention", OnCuda())
    assert "built without CUDA" in cupy


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("sliding_window_attention", False),
        ("neighbourhood_aggregation", False),
        ("neighbourhood_difference", False),
        ("window_attention", True),
        ("convolution_path", False),
        ("sliding_window_paths", False),
    ],
)
def test_reasons_know_the_operators(op, expected):
    reasons = cuda.why_not(op, torch.zeros(1))
    assert any("no CUDA kernel" in reason for reason in reasons) == expected


@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 7), (1, 1), (1, 200), (37, 3)])
@pytest.mark.parametrize("planes", [1, 130, 5003])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("gather", [False, True])
def test_tiles_cover_the_map_within_the_limits(size, planes, dtype, gather):
    for kernel_size in sources.KERNEL_SIZES:
        for stride in sources.TILED_STRIDES:
            rows = 1 if gather else sources.query_rows(kernel_size, dtype)
            window = dict(kernel_size=kernel_size, stride=stride, rows=rows, gather=gather)
            cut = tiles.cut_tiles(size, planes, 64, dtype, **window)
            x, y, z = cut.block
            assert cut.tiles_y * y * rows >= size[0]
            assert cut.tiles_x * x >= size[1]
            assert cut.grid // (cut.tiles_y * cut.tiles_x) * z >= planes
            assert x * y * z <= 128
            assert cut.chunk >= 1
            assert cut.shared_bytes <= 48 * 1024


def test_windows_too_large_for_a_block_are_refused(emulated):
    maps, kernels = torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 79, 79)
    with pytest.raises(acmix.InputError, match=r"shape\[-1\]=79: .* give backend='torch'"):
        ops.convolution(maps, None, torch.zeros(1, 1), kernels, 1)


def test_maps_of_two_tensors(emulated):
    maps, grad = torch.randn(2, 3, 2, 5, 4), torch.randn(2, 4, 5, 4)
    layer, kernels = torch.randn(9, 3), torch.randn(4, 9, 3, 3)
    together, apart = (maps, None), maps.split((1, 2), dim=1)
    values = [ops.convolution(*parts, layer, kernels, 1) for parts in (together, apart)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    expected, *grads = (
        ops.convolution_backward(grad, *parts, layer, kernels, 1) for parts in (together, apart)
    )
    for dmaps, drest, *weights in grads:
        actual = torch.cat([dmaps, drest], dim=1), None, *weights
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_scalars_are_typed():
    assert type(launcher._typed(3, numpy.float32)) is numpy.int32
    assert type(launcher._typed(True, numpy.float32)) is numpy.int32
    assert type(launcher._typed(0.5, numpy.float64)) is numpy.float64


def test_what_a_kernel_cannot_count_is_refused(emulated):
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(acmix.InputError, match="split the batch"):
        launcher.launch("difference", "any", 2**31, (1, 1, 1), (x,))
    with pytest.raises(acmix.InputError, match="below 2\\*\\*31"):
        launcher.launch("difference", "difference_forward<float, 3>", 1, (1, 1, 1), (x, 2**31))
    with pytest.raises(acmix.InputError, match="contiguous"):
        launcher.launch("difference", "any", 1, (1, 1, 1), (x, torch.zeros(2, 3).T))
    wide = x[:, :0].expand(1, 0, 2**16, 2**16)
    with pytest.raises(acmix.InputError, match="fewer than 2\\*\\*31 pixels"):
        ops.difference(wide, wide, 3, 1, 1, True)
    with pytest.raises(acmix.InputError, match="too wide to reflect"):
        ops.difference(x, x, 3, 1, 1, True)


@pytest.fixture
def unfilled_memory():
    """Let torch reserve memory without touching it."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


def _reserve(*shape):
    try:
        return torch.empty(shape, dtype=torch.float16)
    except RuntimeError as error:
        pytest.skip(f"more than 2**31 elements cannot be reserved here: {error}")


def test_difference_beyond_32_bits(emulate, unfilled_memory):
    """The last channel of an output of more than 2³¹ elements."""
    channels, size = 700, 256
    a, b = (_reserve(1, channels, size, size) for _ in range(2))
    a[:, -1], b[:, -1] = 3, 1
    emulate(first_block=lambda grid: grid - size * size // 128)
    out = ops.difference(a, b, 7, 1, 1, True)
    assert out.numel() > 2**31
    assert (out[0, -1] == 2).all()


def test_attention_beyond_32_bits(emulate, unfilled_memory):
    """The last tiles of the last head of maps of more than 2³¹ elements."""
    heads, channels, size = 520, 64, 256
    x = _reserve(1, heads, channels, size, size)
    assert x.numel() > 2**31
    x[:, -2:, :, -40:] = 1
    emulate(first_block=lambda grid: grid - 16)
    out, lse = ops.attention(x, x, x, 7, 1, 1)
    assert (out[0, -1, :, -4:, -16:] == 1).all()
    expected = torch.tensor(channels**0.5 + math.log(49))
    torch.testing.assert_close(lse[0, -1, -1, -1], expected)


def test_convolution_beyond_32_bits(emulate, unfilled_memory):
    """The last tiles of the last channel of maps of more than 2³¹ elements."""
    depth, size = 2800, 256
    maps = _reserve(1, 12, depth, size, size)
    assert maps.numel() > 2**31
    maps[:, :, -1, -20:] = 1
    layer, kernels = torch.ones(9, 12), torch.ones(4 * depth, 9, 3, 3)
    emulate(first_block=lambda grid: grid - 8)
    out = ops.convolution(maps, None, layer, kernels, 1)
    assert (out[0, -4:, -16:-1, 1:-1] == 9 * 9 * 12).all()
    assert (out[0, -4:, -1, 1:-1] == 6 * 9 * 12).all()
