"""The convolution path."""

import torch

import acmix
from operator_contract import SMALL, CpuContract, needs_kernels
from operators import Case, Convolution, SplitConvolution


class TestConvolution(CpuContract):
    operator = Convolution()
    sizes = {
        "folded": Case((13, 11), stride=2, heads=4, depth=8),
        "layer": Case((13, 11), heads=6, depth=8),
    }
    registrations = {"folded": SMALL, "layer": Case((5, 6), stride=2, heads=5, depth=2)}


class TestSplitConvolution(CpuContract):
    operator = SplitConvolution()
    sizes = TestConvolution.sizes
    registrations = TestConvolution.registrations


@needs_kernels
def test_maps_of_two_formats():
    """One of them channels last: the result is like the first, and gradients like each."""
    case = Case((9, 7), heads=4, depth=16)
    first, rest, *weights = SplitConvolution().inputs(case)
    rest = rest.to(memory_format=torch.channels_last)
    results = []
    for backend in ("cpu", "reference"):
        leaves = [x.clone().requires_grad_() for x in (first, rest)]
        out = acmix.convolution_path(leaves[0], *weights, rest=leaves[1], backend=backend)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    torch.testing.assert_close(*results)
    assert results[0][0].is_contiguous()
    assert results[0][2].is_contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_addresses_beyond_32_bits(tmp_path):
    """Images more than 2³¹ elements apart in a sparse file."""
    case = Case((9, 8), heads=4)
    qkv, *weights = Convolution().inputs(case, torch.float32)
    apart, channels = 2**31 + 11, qkv.shape[1]
    storage = torch.from_file(str(tmp_path / "maps.bin"), shared=True, size=apart + qkv.numel())
    far = storage.as_strided(qkv.shape, (apart, 1, 8 * channels, channels)).copy_(qkv)
    near = qkv.to(memory_format=torch.channels_last)
    actual, expected = (acmix.convolution_path(x, *weights, backend="cpu") for x in (far, near))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@needs_kernels
def test_gradients_of_kernels_that_came_folded():
    """The gradient of folded kernels is theirs, not one of a layer that they have not."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 12 * 4, 5, 6, dtype=torch.float64, generator=generator)
    kernels = torch.randn(16, 12, 3, 3, dtype=torch.float64, generator=generator)
    layer = torch.empty(0, 12, dtype=torch.float64)
    grads = []
    for backend in ("cpu", "torch"):
        weights = kernels.clone().requires_grad_()
        acmix.convolution_path(qkv, layer, weights, backend=backend).sin().sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)
