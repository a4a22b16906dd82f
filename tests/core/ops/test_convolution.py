"""The convolution path."""

import torch

import acmix
from operator_contract import SMALL, CpuContract, needs_kernels
from operators import Case, Convolution


class TestConvolution(CpuContract):
    operator = Convolution()
    sizes = {
        "folded": Case((13, 11), stride=2, heads=4, depth=8),
        "layer": Case((13, 11), heads=6, depth=8),
    }
    registrations = {"folded": SMALL, "layer": Case((5, 6), stride=2, heads=5, depth=2)}


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
