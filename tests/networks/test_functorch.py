"""Transforms of torch.func, and derivatives of derivatives."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import acmix
from acmix.backends import cpu
from layers import LAYERS, randomised
from user_networks import NETWORKS, TORCH_FUNC_REFUSES, build_network, images

# Sizes at which torch's fused attention would serve.
SIZE = (9, 12)


@pytest.fixture(params=LAYERS)
def kind(request):
    return LAYERS[request.param]


def prepared(kind, **options):
    layer = randomised(kind.make(**options)).double().eval()
    x, *size = kind.inputs(*SIZE)
    return layer, x.double(), size


def losses(layer, x, size, parameters=None):
    """One number an image."""
    parameters = dict(layer.named_parameters()) if parameters is None else parameters
    return functional_call(layer, parameters, (x, *size)).square().flatten(1).mean(1)


def first_gradients(layer, x, size):
    names, parameters = zip(*layer.named_parameters(), strict=True)
    found = torch.autograd.grad(losses(layer, x, size).sum(), parameters)
    return dict(zip(names, found, strict=True))


def test_gradients_of_parameters(kind):
    layer, x, size = prepared(kind)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = grad(lambda p: losses(layer, x, size, p).sum())(parameters)
    torch.testing.assert_close(found, first_gradients(layer, x, size))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_sample(kind):
    layer, x, size = prepared(kind)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    one = grad(lambda p, image: losses(layer, image[None], size, p).sum())
    found = vmap(one, in_dims=(None, 0))(parameters, x)
    for sample in range(len(x)):
        expected = first_gradients(layer, x[sample : sample + 1], size)
        torch.testing.assert_close({n: g[sample] for n, g in found.items()}, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_many_layers_at_once(kind):
    layer, x, size = prepared(kind)
    stacked = {n: torch.stack([p, 2 * p]).detach() for n, p in layer.named_parameters()}
    found = vmap(lambda p: losses(layer, x, size, p))(stacked)
    for index in range(2):
        parameters = {n: p[index] for n, p in stacked.items()}
        torch.testing.assert_close(found[index], losses(layer, x, size, parameters))


def forward_mode(function, x, tangent):
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(x, tangent))
        return tuple(forward_ad.unpack_dual(out))


@pytest.mark.parametrize("way", [jvp, forward_mode])
def test_tangents(kind, way):
    layer, x, size = prepared(kind)
    tangent = torch.randn_like(x)

    def function(x):
        return losses(layer, x, size)

    arguments = ((x,), (tangent,)) if way is jvp else (x, tangent)
    _, found = way(function, *arguments)
    jacobian = jacrev(function)(x)
    torch.testing.assert_close(found, (jacobian * tangent).flatten(1).sum(1))


def penalty(layer, x, size):
    """Gradients of the squared norm of the gradient of an image."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(losses(layer, x, size).sum(), x, create_graph=True)
    parameters = dict(layer.named_parameters())
    found = torch.autograd.grad(slope.square().sum(), parameters.values(), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def test_second_derivatives_by_torch(kind):
    layer, x, size = prepared(kind, backend="torch")
    found = penalty(layer, x, size)
    slow, _, _ = prepared(kind, backend="reference")
    slow.load_state_dict(layer.state_dict())
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(found, penalty(slow, x, size))
    assert found["rate1"].any()

    def squared_slope(p):
        return grad(lambda x: losses(layer, x, size, p).sum())(x).square().sum()

    # Inside a transform any layer takes torch.
    layer.backend = None
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    by_transforms = grad(squared_slope)(parameters)
    torch.testing.assert_close({name: by_transforms[name] for name in found}, found)


@pytest.mark.skipif(
    bool(cpu.why_not("sliding_window_attention", torch.empty(0))),
    reason="the CPU kernels can't be built here",
)
@pytest.mark.parametrize("name", ["ACmix2d", "WindowACmix", "patchwise", "pairwise"])
def test_second_derivatives_of_kernels_say_what_to_do(name):
    with pytest.raises(RuntimeError, match="use backend='torch'"):
        penalty(*prepared(LAYERS[name]))


def test_a_backend_named_inside_a_transform_says_what_to_do():
    layer, x, _ = prepared(LAYERS["ACmix2d"], backend="cpu")
    with pytest.raises(acmix.BackendError, match="transforms of torch.func need backend='torch'"):
        grad(lambda x: layer(x).sum())(x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - TORCH_FUNC_REFUSES))
def test_gradients_of_each_sample_of_a_network(name):
    network, x = build_network(name), images()
    parameters = {n: p.detach() for n, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(p, image):
        return functional_call(network, (p, buffers), (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    network(x[:1]).square().sum().backward()
    expected = {n: p.grad for n, p in network.named_parameters()}
    scale = max(g.abs().max() for g in expected.values())
    for n, g in expected.items():
        assert (found[n][0] - g).abs().max() <= 1e-4 * scale, n
