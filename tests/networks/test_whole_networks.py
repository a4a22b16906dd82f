"""Compilers, checkpointing, tracers and exporters over networks of others."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import acmix
from acmix.mm.formats import OPEN
from exporting import assert_equal_at, in_onnxruntime
from user_networks import NETWORKS, PROGRAMS_REFUSE, build_network, images

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = ((64, 96), (96, 64), (160, 128))
# A compiler or exporter takes minutes for the larger ones.
BY_TIME = [
    pytest.param(name, marks=[pytest.mark.slow, *[pytest.mark.thorough] * (name != "csp")])
    for name in NETWORKS
]
EXPORTED = [parameter for parameter in BY_TIME if parameter.values[0] not in PROGRAMS_REFUSE]


def step(network, run, x):
    """Output and gradients of a training step."""
    network.zero_grad()
    out = run(x)
    out.square().mean().backward()
    return out.detach(), [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", BY_TIME)
def test_training_step_compiles(name):
    torch._dynamo.reset()
    # In evaluation, as statistics of a batch would be updated twice.
    network, x = build_network(name).double(), images(64).double()
    # A plain YOLO11n ends in an InductorError of torch 2.14 where sizes may be open.
    compiled = torch.compile(network, dynamic=False if name == "yolo11n" else None)
    out, grads = step(network, compiled, x)
    expected, expected_grads = step(network, network, x)
    assert (out - expected).abs().max() <= 1e-9 * expected.abs().max()
    scale = max(grad.abs().max() for grad in expected_grads)
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert (mine - theirs).abs().max() <= 1e-9 * scale


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_activations_are_made_again(name, use_reentrant):
    network, x = build_network(name), images(64).requires_grad_()
    found = step(network, lambda x: checkpoint(network, x, use_reentrant=use_reentrant), x)
    torch.testing.assert_close(found, step(network, network, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_near(name):
    network, x = build_network(name), images(64)
    with torch.no_grad():
        expected = network(x)
        plain = torch.autocast("cpu", torch.bfloat16)
        with plain:
            found = network(x)
    assert (found.float() - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "csp")) for name in NETWORKS]
)
def test_trace_serves_other_sizes(name):
    network = build_network(name)
    traced = torch.jit.trace(network, torch.randn(2, 3, 64, 64), check_trace=False)
    assert_equal_at(traced, network, SIZES[:2], tolerance=1e-3)


@pytest.mark.parametrize("name", EXPORTED)
def test_program_serves_other_sizes(name):
    network = build_network(name)
    program = torch.export.export(network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(OPEN,))
    assert not [node for node in program.graph.nodes if "acmix" in str(node.target)]
    assert_equal_at(program.module(), network, SIZES)


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_of_a_program_serves_other_sizes(name, tmp_path):
    assert_onnx_serves(name, tmp_path / "network.onnx", dynamo=True)


@pytest.mark.parametrize("name", BY_TIME)
def test_onnx_of_a_trace_serves_other_sizes(name, tmp_path):
    assert_onnx_serves(name, tmp_path / "network.onnx", dynamo=False)


def assert_onnx_serves(name, path, *, dynamo):
    network = build_network(name)
    run = in_onnxruntime(network, torch.randn(2, 3, 64, 64), path, dynamo=dynamo)
    # Boxes are hundreds of pixels.
    assert_equal_at(run, network, SIZES, tolerance=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_deployed_network_gives_the_same(name):
    network, x = build_network(name), images(64)
    with torch.no_grad():
        expected = network(x)
        found = acmix.deploy(network)(x)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
