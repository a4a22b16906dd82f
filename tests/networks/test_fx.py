"""torch.fx: layers and functions are one node each, without extra arguments of the tracer."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn

import acmix
from layers import LAYERS
from user_networks import FX_REFUSES, NETWORKS, build_network, images


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - FX_REFUSES))
def test_network_with_layers_is_traced(name):
    network, x = build_network(name), images()
    expected = network(x)
    graph = fx.symbolic_trace(network)
    leaves = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    layers = [n for n, m in network.named_modules() if isinstance(m, acmix.ACmix2d)]
    assert set(layers) <= set(leaves)
    for twin in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_all_kinds_are_leaves(name):
    case = LAYERS[name]
    x, *size = case.inputs(6, 7)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = case.build()

        def forward(self, x):
            # By name too, as a layer may be called so.
            return self.layer(x, hw_shape=size[0]) if size else self.layer(x=x)

    network = Network().eval()
    graph = fx.symbolic_trace(network)
    assert [n.op for n in graph.graph.nodes].count("call_module") == 1
    torch.testing.assert_close(graph(x), network(x), rtol=0, atol=0)


def test_a_traced_layer_says_what_to_trace():
    with pytest.raises(acmix.InputError, match="root=ACmix2d: a leaf; trace a module that holds"):
        fx.symbolic_trace(LAYERS["ACmix2d"].build())


def test_script_says_what_to_do():
    with pytest.raises(acmix.InputError, match="use torch.jit.trace or torch.export"):
        torch.jit.script(nn.Sequential(LAYERS["ACmix2d"].build()))


class Operators(nn.Module):
    """Every public function, on (1, 12, 5, 5)."""

    def forward(self, x, fc, kernels):
        q, k, v = x.unflatten(1, (3, 2, 2)).unbind(1)
        position = q[0, 0]
        a = acmix.sliding_window_attention(q, k, v=v, position=position, kernel_size=3)
        pixels = x.flatten(2).unflatten(1, (3, 2, 2)).transpose(-2, -1)
        b = acmix.window_attention(
            pixels[:, 0], pixels[:, 1], pixels[:, 2], bias=pixels[0, 0] @ (pixels[0, 1].mT)
        )
        c = acmix.convolution_path(x, fc, kernels)
        d = acmix.sliding_window_paths(x, position, fc, kernels, kernel_size=3)
        e = acmix.neighbourhood_difference(x, kernel_size=3)
        f = acmix.neighbourhood_aggregation(x, e[:, :4], kernel_size=3)
        windows = x.permute(0, 2, 3, 1)
        g = acmix.map_window_attention(windows, torch.ones(2, 25, 25), window_size=(5, 5))
        h = acmix.mixed_paths(x, position, fc, kernels, kernel_size=3)
        return [*(t.sum() for t in (a, b, c, e, f, g, h)), d[0].sum() + d[1].sum()]


def test_functions_are_one_node_each():
    graph = fx.symbolic_trace(Operators())
    called = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert {
        f for f in vars(acmix).values() if callable(f) and f.__module__ == "acmix.functional"
    } <= set(called)
    inputs = torch.randn(1, 12, 5, 5), torch.randn(9, 6), torch.randn(4, 9, 3, 3)
    expected = Operators()(*inputs)
    for twin in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.testing.assert_close(twin(*inputs), expected)


@pytest.mark.parametrize("name", ["resnet18", "csp"])
def test_torchvision_extracts_features(name):
    extraction = pytest.importorskip(
        "torchvision.models.feature_extraction", reason="pip install torchvision"
    )
    network, x = build_network(name), images()
    layers = [n for n, m in network.named_modules() if isinstance(m, acmix.ACmix2d)]
    seen = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, out, layer=layer: seen.update({layer: out})
        )
    extractor = extraction.create_feature_extractor(network, layers)
    network(x)
    torch.testing.assert_close(extractor(x), dict(seen), rtol=0, atol=0)


def test_timm_extracts_features():
    timm = pytest.importorskip("timm", reason="timm is not installed (pip install timm)")
    network, x = build_network("timm-resnet50"), images()
    maps = timm.models.FeatureGraphNet(network, out_indices=(1, 2, 3))(x)
    expected = network.forward_intermediates(x, indices=(1, 2, 3), intermediates_only=True)
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
