"""SAN: original names, both self-attentions against naive loops, warm start."""

import pytest
import torch

from acmix import InputError, PatchwiseACmix, reference
from acmix.complexity import count_parameters
from acmix.mm import load_weights
from acmix_san import ACmixSAN
from acmix_san.convert import convert_state_dict
from support import golden_weights


@pytest.mark.parametrize(("depth", "thousands"), [(10, 11841), (15, 16181), (19, 20518)])
def test_without_convolution_path_it_is_san(depth, thousands):
    plain = ACmixSAN(depth, mix="attention")
    head = 2048 * 1000 + 1000
    assert round((count_parameters(plain) + head) / 1000) == thousands


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
def test_original_names_and_shapes_fill_the_plain_model(attention):
    weights = golden_weights("original_baseline_layout.json", f"san10_{attention}")
    conversion = convert_state_dict(weights)
    own = ACmixSAN(10, attention, mix="attention").state_dict()
    body = {n: w.shape for n, w in conversion.state_dict.items() if n.startswith("backbone.")}
    assert body == {f"backbone.{n}": w.shape for n, w in own.items()}
    assert set(conversion.state_dict) - set(body) == {"head.fc.weight", "head.fc.bias"}


def small(**options):
    torch.manual_seed(0)
    options = {"widths": (32, 32, 32, 64, 64), "stem_channels": 8, **options}
    return ACmixSAN(10, **options).eval()


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
def test_original_weights_start_the_same_model(attention):
    plain = small(attention=attention, mix="attention")
    ours = small(attention=attention)
    load_weights(ours, plain.state_dict(), "original", complete=True)
    x = torch.randn(2, 3, 97, 64)
    torch.testing.assert_close(ours(x), plain(x))


def randomised(layer):
    """Batch statistics and affine weights that hide no mistake."""
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return layer.double().eval()


def reflected(index, size):
    index = abs(index)
    return 2 * (size - 1) - index if index >= size else index


def naive_attention(layer, x):
    """Pixel by pixel and offset by offset, straight from the equations."""
    q, k, v = layer.conv1(x), layer.conv2(x), layer.conv3(x)
    size, (_, channels, height, width) = layer.kernel_att, v.shape
    offsets = [(dy - size // 2, dx - size // 2) for dy in range(size) for dx in range(size)]
    out = torch.zeros_like(v)
    grid = torch.stack(
        torch.meshgrid(
            torch.linspace(-1, 1, width, dtype=x.dtype),
            torch.linspace(-1, 1, height, dtype=x.dtype),
            indexing="xy",
        )
    )
    for y in range(height):
        for x_ in range(width):
            around = [(reflected(y + dy, height), reflected(x_ + dx, width)) for dy, dx in offsets]
            keys = torch.stack([k[..., ny, nx] for ny, nx in around], dim=2)
            if layer.attention == "patchwise":
                pair = torch.cat([q[..., y, x_], keys.flatten(1)], dim=1)[..., None, None]
                weights = layer.conv_w(pair).view(len(v), layer.shared, size**2)
            else:
                places = layer.conv_p(grid[None])[0]
                there = torch.stack([places[:, ny, nx] for ny, nx in around], dim=1)
                offset = (places[:, y, x_, None] - there).expand(len(v), -1, -1)
                pair = torch.cat([q[..., y, x_, None] - keys, offset], dim=1)[..., None]
                weights = layer.conv_w(pair)[..., 0].softmax(dim=2)
            for channel in range(channels):
                values = torch.stack([v[:, channel, ny, nx] for ny, nx in around], dim=1)
                out[:, channel, y, x_] = (weights[:, channel % layer.shared] * values).sum(dim=1)
    return out


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
@pytest.mark.parametrize(("kernel", "size"), [(3, (4, 5)), (5, (6, 3)), (7, (5, 4))])
def test_layer_computes_what_its_equations_say(attention, kernel, size):
    torch.manual_seed(0)
    layer = randomised(PatchwiseACmix(6, 16, kernel, attention=attention))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        qkv = torch.cat([layer.conv1(x), layer.conv2(x), layer.conv3(x)], dim=1)
        weight, kernels = layer.fc.weight.flatten(1), layer.dep_conv.weight
        convolution = reference.convolution_path(qkv, weight, kernels)
        expected = layer.rate1 * naive_attention(layer, x) + layer.rate2 * convolution
        torch.testing.assert_close(layer(x), expected)


def test_patchwise_weights_need_no_unfolded_keys_in_evaluation():
    torch.manual_seed(0)
    layer = randomised(PatchwiseACmix(8, 32, 7))
    q, k = (torch.randn(2, 8, 9, 8, dtype=torch.float64) for _ in range(2))
    unfolded = layer.conv_w(layer._patches(q, k)).unflatten(1, (4, 49))
    torch.testing.assert_close(layer._patchwise(q, k), unfolded)


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)])
def test_layer_takes_maps_too_small_to_reflect(attention, size):
    layer = PatchwiseACmix(6, 16, 7, attention=attention)
    x = torch.randn(2, 6, *size)
    out = layer(x)
    out.sum().backward()
    assert out.shape == (2, 16, *size)
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ACmixSAN(11), "depth=11: choose from 10, 15, 19"),
        (lambda: ACmixSAN(10, "pairwize"), "attention='pairwize': choose from patchwise, pairwise"),
        (lambda: PatchwiseACmix(8, 12, share=8), "dim=12: must be a multiple of share=8"),
        (lambda: PatchwiseACmix(8, 16)(torch.zeros(1, 4, 9, 9)), r"give \(B, 8, H, W\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
