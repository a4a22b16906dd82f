"""Without gradients a position encoding is kept, for just as long as its weights stay the same."""

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

import acmix
from acmix.modules import acmix2d, neighbourhood

LAYERS = {
    "sliding window": lambda: acmix.ACmix2d(16, 16),
    "pairwise": lambda: acmix.VectorACmix(32, 32, kernel_att=3, attention="pairwise"),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


@pytest.fixture
def made(monkeypatch):
    """The sizes that positions were made for."""
    sizes = []
    for module in (acmix2d, neighbourhood):
        original = module.encode_position

        def counted(conv, like, original=original):
            sizes.append(tuple(like.shape[-2:]))
            return original(conv, like)

        monkeypatch.setattr(module, "encode_position", counted)
    return sizes


def maps(layer, *size):
    return torch.randn(2, layer.in_channels, *size)


def test_made_once_a_size(layer, made):
    with torch.no_grad():
        for size in ((9, 8), (9, 8), (7, 8), (9, 8)):
            layer(maps(layer, *size))
    assert made == [(9, 8), (7, 8)]


def test_made_anew_with_gradients(layer, made):
    x = maps(layer, 9, 8)
    with torch.no_grad():
        layer(x)
    for _ in range(2):
        layer(x).sum().backward()
    assert made == [(9, 8)] * 3
    assert layer.conv_p.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.weight.data.neg_(),
        lambda conv: conv.weight.detach()[0].mul_(3),
        lambda conv: setattr(conv.weight, "data", conv.weight.data + 1),
        lambda conv: setattr(conv, "weight", torch.nn.Parameter(conv.weight * 2)),
        lambda conv: conv.load_state_dict({n: x + 1 for n, x in conv.state_dict().items()}),
    ],
    ids=["data", "in place", "swapped", "replaced", "loaded"],
)
@torch.no_grad()
def test_every_change_counts(layer, change):
    x = maps(layer, 9, 8)
    before = layer(x)
    change(layer.conv_p)
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(before, expected)


@torch.no_grad()
def test_vmapped_layers_have_positions_of_their_own(made):
    # Of plain torch, as vmap transforms its operators alone.
    layers = [acmix.ACmix2d(16, 16, backend="torch").eval() for _ in range(3)]
    x = maps(layers[0], 9, 8)
    expected = torch.stack([one(x) for one in layers])
    made.clear()
    parameters, buffers = stack_module_state(layers)

    def run(parameters, buffers):
        return functional_call(layers[0], (parameters, buffers), (x,))

    torch.testing.assert_close(vmap(run)(parameters, buffers), expected)
    assert made == [(9, 8)]


@torch.no_grad()
def test_trace_computes_the_position(layer):
    x = maps(layer, 9, 8)
    layer(x)
    traced = torch.jit.trace(layer, x)
    traced.conv_p.weight.data.neg_()
    layer.conv_p.weight.data.copy_(traced.conv_p.weight)
    torch.testing.assert_close(traced(x), layer(x))
