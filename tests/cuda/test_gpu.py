"""The kernels on a real device; every test here is skipped without one."""

import pytest
import torch

import acmix
from acmix.backends import BACKENDS, cuda_backend
from cuda_emulator.operators import (
    aggregation,
    aggregation_maps,
    attention,
    maps,
    plain_aggregation,
    plain_attention,
    plain_subtraction,
    subtraction,
)
from support import assert_within_error_budget, gradients

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WINDOWS = [(3, 1, 1), (5, 2, 1), (7, 1, 1), (7, 2, 1), (7, 1, 2), (9, 3, 1)]
NAMES = ("kernel_size", "stride", "dilation")


@pytest.fixture(autouse=True)
def _needs_cupy():
    reasons = cuda_backend.why_not("sliding_window_attention", torch.zeros(1, device="cuda"))
    if reasons:
        pytest.skip("; ".join(reasons))


def on_device(function):
    """Run on the GPU what the budget helper gives on the CPU."""

    def run(*inputs, **options):
        return function(*(x.cuda() for x in inputs), **options).cpu()

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [(56, 56), (14, 14), (7, 7), (13, 29), (3, 2), (1, 1)])
def test_attention_error_budget(dtype, window, size):
    inputs = maps(*[(2, 4, 32, *size)] * 3)
    options = dict(zip(NAMES, window, strict=True))
    assert_within_error_budget(on_device(attention), plain_attention, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reflect", [True, False])
def test_aggregation_error_budget(dtype, window, reflect):
    inputs = aggregation_maps(2, 32, 4, (19, 26), *window[:2])
    options = dict(zip(NAMES, window, strict=True), reflect=reflect)
    assert_within_error_budget(on_device(aggregation), plain_aggregation, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reflect", [True, False])
def test_subtraction_error_budget(dtype, window, reflect):
    inputs = maps(*[(2, 8, 19, 26)] * 2)
    options = dict(zip(NAMES, window, strict=True), reflect=reflect)
    assert_within_error_budget(on_device(subtraction), plain_subtraction, inputs, dtype, options)


def test_attention_in_double():
    inputs = maps(*[(2, 2, 16, 15, 13)] * 3)
    for kernel_size in (3, 5, 7):
        expected = gradients(plain_attention, *inputs, kernel_size=kernel_size)
        actual = gradients(on_device(attention), *inputs, kernel_size=kernel_size)
        torch.testing.assert_close(actual, expected)


def test_gradients_are_the_same_on_every_run():
    inputs = maps(*[(4, 4, 32, 28, 28)] * 3, dtype=torch.float16, device="cuda")
    first, second = (gradients_on_device(inputs) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def gradients_on_device(inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    attention(*leaves).square().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("side", [14, 56, 112])
def test_current_stream_is_used(side):
    """A kernel on another stream would read the maps before they are filled."""
    inputs = maps(*[(8, 4, 32, side, side)] * 3, dtype=torch.float32, device="cuda")
    expected = attention(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late = [x.clone() for x in inputs]
        actual = attention(*late)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_second_device_while_the_first_is_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    inputs = maps(*[(1, 2, 16, 14, 14)] * 3, dtype=torch.float32)
    here, there = (attention(*(x.to(f"cuda:{i}") for x in inputs)) for i in range(2))
    assert there.device.index == 1
    torch.testing.assert_close(there.cpu(), here.cpu(), rtol=0, atol=0)


def test_cuda_graph_replays_forward_and_backward():
    static = maps(*[(2, 4, 32, 14, 14)] * 3, dtype=torch.float16, device="cuda")
    other = maps(*[(2, 4, 32, 14, 14)] * 3, dtype=torch.float16, device="cuda")
    other = [x.flip(-1) for x in other]

    def step(q, k, v):
        out, lse = cuda_backend.attention_forward(q, k, v, 7, 1, 1)
        return out, *cuda_backend.attention_backward(out, q, k, v, out, lse, 7, 1, 1)

    step(*static)  # Compiles, which a capture must not.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for x, y in zip(static, other, strict=True):
        x.copy_(y)
    graph.replay()
    torch.testing.assert_close(list(captured), list(step(*other)), rtol=0, atol=0)


def test_autocast_runs_in_half():
    if "cuda" not in BACKENDS:
        pytest.skip("the cuda backend is not in acmix.backends.BACKENDS")
    q, k, v = maps(*[(2, 4, 32, 14, 14)] * 3, dtype=torch.float32, device="cuda")
    with torch.autocast("cuda", torch.float16):
        out = acmix.sliding_window_attention(q.half(), k.half(), v.half(), backend="cuda")
    assert out.dtype == torch.float16
    expected = plain_attention(q, k, v)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=5e-3)
