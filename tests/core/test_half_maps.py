"""Maps of bfloat16 that the CPU kernels widen as they read and round as they write."""

import pytest
import torch

import acmix
from acmix import layout
from acmix.backends.cpu import attention, convolution, library, mixing

pytestmark = pytest.mark.skipif(
    bool(library.problem()), reason=f"no CPU library: {library.problem()}"
)
ISAS = ("baseline", "avx2", "avx512")
# Whole vectors of channels, a rest of them, and one; strides and borders of both kinds.
SHAPES = [
    ((2, 2, 16, 9, 11), 7, 2, 1),
    ((1, 3, 5, 7, 12), 3, 1, 2),
    ((1, 2, 19, 3, 20), 5, 3, 1),
    ((2, 1, 1, 6, 5), 3, 1, 1),
]


@pytest.fixture(params=ISAS)
def isa(request):
    if request.param not in library.load().isas:
        pytest.skip(f"this machine can't run {request.param}")
    return request.param


def maps_like(shape, last, seed, dtype=torch.bfloat16):
    """Random (B, N, D, H, W), stored channels last or first."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    return layout.channels_last(x) if last else x


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("shape", "kernel", "stride", "dilation"), SHAPES)
def test_attention_is_that_of_widened_maps(isa, shape, kernel, stride, dilation, last):
    q, k, v = (maps_like(shape, last, seed) for seed in range(3))
    size = [-(-n // stride) for n in shape[3:]]
    reflect = dilation * (kernel // 2) < min(shape[3:])
    window = library.window(shape, kernel, stride, dilation, reflect=reflect)
    results = []
    for widen in (False, True):
        maps = [x.float() if widen else x for x in (q, k, v)]
        out = torch.empty_like(maps_like((*shape[:3], *size), last, 3)).to(maps[0].dtype)
        lse = torch.empty(*shape[:2], 1, *size)
        tensors = dict(zip("qkv", maps, strict=True), out=out, lse=lse)
        library.load().run("attention", window, tensors, isa=isa)
        results.append((out.bfloat16(), lse))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "kernel", "stride", "_"), SHAPES)
def test_convolution_is_that_of_widened_maps(isa, shape, kernel, stride, _):
    batch, maps, depth, height, width = shape
    x = maps_like(shape, True, 0)
    kernels = maps_like((4, maps, kernel, kernel, depth), False, 1, torch.float32)
    settings = dict(batch=batch, maps=maps, outs=4, depth=depth, height=height, width=width)
    settings |= dict(split=maps, kernel=kernel, stride=stride, band=2)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        size = [-(-n // stride) for n in shape[3:]]
        out = torch.empty(batch, *size, depth, 4, dtype=dtype).permute(0, 4, 3, 1, 2)
        tensors = dict(input=x.to(dtype), kernels=kernels, out=out)
        library.load().run("convolution", settings, tensors, isa=isa)
        results.append(out.bfloat16())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_rounding_is_torchs(isa):
    """Halves to even, overflow to infinity, and NaN stays so, even one of the lowest bits alone."""
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001, -0x7F8000, 0x80FFFF])
    x = bits.to(torch.int32).view(torch.float32).repeat(16)[:80].reshape(1, 1, 16, 1, 5)
    out = torch.empty(1, 1, 5, 16, 1, dtype=torch.bfloat16).permute(0, 4, 3, 1, 2)
    settings = dict(batch=1, maps=1, outs=1, depth=16, height=1, width=5, kernel=1, stride=1)
    tensors = dict(input=layout.channels_last(x), kernels=torch.ones(1, 1, 1, 1, 16), out=out)
    library.load().run("convolution", {**settings, "split": 1, "band": 1}, tensors, isa=isa)
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("depth", [16, 24])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_does_not_depend_on_where_maps_are_widened(monkeypatch, memory_format, depth):
    layer = acmix.ACmix2d(8, 4 * depth).eval()
    x = torch.randn(2, 8, 15, 9).to(memory_format=memory_format)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kept = layer(x)
        for module in (attention, convolution, mixing):
            monkeypatch.setattr(module, "readable", layout.computable)
        widened = layer(x)
    assert kept.dtype == torch.bfloat16
    # Widened in whole, the sum of the paths is rounded once, and otherwise after each.
    torch.testing.assert_close(kept, widened, rtol=2**-7, atol=2**-9)
    assert kept.stride() == widened.stride()


def test_whole_vectors_stay_narrow():
    wide, rest = (maps_like((1, 2, depth, 4, 4), True, 0) for depth in (32, 24))
    assert layout.readable(wide).dtype == torch.bfloat16
    for x in (rest, wide.contiguous(), wide.half()):
        assert layout.readable(x).dtype == torch.float32
