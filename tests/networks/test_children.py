"""Children that are more than their weights: norms of weights, pruning, adapters, offloading."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

from acmix import ACmix2d
from layers import LAYERS
from user_networks import NETWORKS, SHIFTS, build_network, images, weighted


@pytest.fixture(params=LAYERS)
def case(request):
    return LAYERS[request.param]


@pytest.fixture(params=SHIFTS)
def shift(request):
    return request.param


def _unparametrize(module):
    parametrize.remove_parametrizations(module, "weight")


def _set_by_hook(module):
    handle = module.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    module.undo = handle.remove


def _halve(module):
    module.undo()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 0.5


# What makes a child more than its weights, and what makes it a plain one of the same values again.
USES = {
    "old spectral norm": (spectral_norm, remove_spectral_norm),
    "old weight norm": (weight_norm, remove_weight_norm),
    "spectral norm": (parametrizations.spectral_norm, _unparametrize),
    "weight norm": (parametrizations.weight_norm, _unparametrize),
    "pruning": (
        lambda module: prune.l1_unstructured(module, "weight", amount=0.5),
        lambda module: prune.remove(module, "weight"),
    ),
    "forward hook": (_set_by_hook, _halve),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("use", USES)
def test_children_are_called_where_they_are_more_than_their_weights(case, use):
    wrap, unwrap = USES[use]
    for name in weighted(case.build()):
        torch.manual_seed(0)
        layer, inputs = case.build(), case.inputs(6, 7)
        child = layer.get_submodule(name)
        nn.init.normal_(child.weight)
        plain = copy.deepcopy(layer)
        wrap(child)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            layer(*inputs).square().mean().backward()
            optimizer.step()
        learned = [p for p in child.parameters() if p.grad is not None and p.grad.any()]
        assert learned, name
        layer.eval()
        with torch.no_grad():
            out = layer(*inputs)
            unwrap(layer.get_submodule(name))
            torch.testing.assert_close(layer(*inputs), out, msg=name)
        assert not torch.allclose(plain.eval()(*inputs), out), name


def test_children_may_be_replaced(case):
    torch.manual_seed(0)
    layer, inputs = case.build().eval(), case.inputs(6, 7)
    expected = layer(*inputs)
    for name in weighted(layer):
        if name != "dep_conv":
            layer.set_submodule(name, nn.Sequential(layer.get_submodule(name)))
    torch.testing.assert_close(layer(*inputs), expected)


def copied(layer):
    return copy.deepcopy(layer)


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


def averaged(layer):
    average = torch.optim.swa_utils.AveragedModel(layer)
    average.update_parameters(layer)
    average.update_parameters(layer)
    return average.module


def called_by_function(layer):
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for tensor in layer.parameters():
        tensor.data.zero_()
    return lambda *inputs: torch.func.functional_call(layer, state, inputs)


def made_from_meta(layer):
    with torch.device("meta"):
        twin = copy.deepcopy(layer).to("meta")
    twin = twin.to_empty(device="cpu")
    twin.load_state_dict(layer.state_dict())
    return twin


def assigned_from_meta(layer):
    twin = copy.deepcopy(layer).to("meta")
    twin.load_state_dict(layer.state_dict(), assign=True)
    return twin


def loaded(layer):
    twin = copy.deepcopy(layer)
    twin.reset_parameters()
    assert twin.load_state_dict(pickle.loads(pickle.dumps(layer.state_dict())))
    return twin


WAYS = [copied, pickled, averaged, called_by_function, made_from_meta, assigned_from_meta, loaded]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_layer_another_way(case, shift, way):
    layer, inputs = case.build(shift=shift).eval(), case.inputs(6, 7)
    expected = layer(*inputs).detach()
    twin = way(layer)
    torch.testing.assert_close(twin(*inputs), expected, rtol=0, atol=0)


def test_a_layer_of_no_memory_starts_anew(case, shift):
    torch.manual_seed(0)
    fresh = case.build(shift=shift)
    layer = case.build(shift=shift).to("meta").to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else 10**6)
    torch.manual_seed(0)
    layer.reset_parameters()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name
    inputs = case.inputs(6, 7)
    torch.testing.assert_close(layer.eval()(*inputs), fresh.eval()(*inputs), rtol=0, atol=0)


def test_adapters_learn_and_merge(case):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
    torch.manual_seed(0)
    layer, inputs = case.build(), case.inputs(6, 7)
    plain = copy.deepcopy(layer).eval()
    # An adapter of a convolution of groups other than one does not exist, so none of dep_conv.
    targets = [name for name in weighted(layer) if name != "dep_conv"]
    model = peft.get_peft_model(layer, peft.LoraConfig(target_modules=targets, r=2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        adapter = "lora_" in name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == adapter, name
    out = model.eval()(*inputs)
    merged = model.merge_and_unload().eval()
    torch.testing.assert_close(merged(*inputs), out)
    assert not torch.allclose(plain(*inputs), out)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_may_wait_elsewhere(case, shift, where, tmp_path):
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed (pip install accelerate)"
    )
    layer, inputs = case.build(shift=shift).eval(), case.inputs(6, 7)
    expected = layer(*inputs).detach()
    if where == "cpu":
        accelerate.cpu_offload(layer, execution_device="cpu")
    else:
        accelerate.disk_offload(layer, tmp_path, execution_device="cpu")
    assert layer.fc.weight.is_meta
    torch.testing.assert_close(layer(*inputs), expected)
    torch.testing.assert_close(layer(*inputs), expected)


def layers_of(network):
    return {name: m for name, m in network.named_modules() if isinstance(m, ACmix2d)}


def pruned(network):
    children = [getattr(m, n) for m in layers_of(network).values() for n in ("conv1", "fc")]
    weights = [(child, "weight") for child in children]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.5)

    def holds():
        zeros = sum((child.weight == 0).sum().item() for child in children)
        return zeros == pytest.approx(sum(child.weight.numel() for child in children) / 2, abs=1)

    return holds


def normed(network):
    for layer in layers_of(network).values():
        spectral_norm(layer.conv3, n_power_iterations=10)

    def holds():
        weights = [layer.conv3.weight.flatten(1) for layer in layers_of(network).values()]
        return all(torch.linalg.matrix_norm(w, 2) < 1.5 for w in weights)

    # They started above.
    assert not holds()
    return holds


def adapted(network):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
    targets = [f"{name}.{c}" for name in layers_of(network) for c in ("conv1", "conv3", "fc")]
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, r=2), network)
    return lambda: all(p.any() for n, p in network.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("use", [pruned, normed, adapted], ids=lambda use: use.__name__)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "csp")) for name in NETWORKS]
)
def test_uses_over_a_network(name, use):
    network, x = build_network(name).train(), images()
    for layer in layers_of(network).values():
        layer.conv3.weight.data *= 4
    holds = use(network)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        # Also makes weights that torch can copy: those of a call with gradients have a graph.
        out = network.eval()(x)
        assert holds()
        torch.testing.assert_close(averaged(network)(x), out, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_a_network_may_wait_elsewhere(name):
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed (pip install accelerate)"
    )
    network, x = build_network(name), images()
    expected = network(x).detach()
    accelerate.cpu_offload(network, execution_device="cpu")
    torch.testing.assert_close(network(x), expected)
