"""The kernels on a real device, and, as far as that goes, on the CPU that stands in for one."""

import pytest
import torch

import acmix
from acmix import ACmix2d, ops
from operators import Aggregation, Attention, Case, Convolution, Difference, Paths, Recorder
from support import assert_within_error_budget

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OPERATORS = [Attention(), Aggregation(), Convolution(), Difference(), Paths()]
CASES = [
    Case((56, 56), heads=4, depth=32),
    Case((14, 14), stride=2, heads=4, depth=32),
    Case((7, 7), 3, heads=4, depth=32),
    Case((13, 29), 5, stride=2, heads=4, depth=32),
    Case((19, 26), dilation=2, heads=4, depth=32),
    Case((14, 14), 9, stride=3, heads=4, depth=32),
    Case((3, 2), heads=4, depth=32),
    Case((1, 1), heads=4, depth=32),
]


def check_budget(operator, case, dtype, device):
    """The operator runs on the device, what it is compared with on the CPU."""
    on_device = operator.on(case, "cuda")

    def run(*inputs):
        return on_device(*(x.to(device) for x in inputs)).cpu()

    inputs = operator.inputs(case)
    assert_within_error_budget(run, operator.reference_on(case), inputs, dtype, {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_small_maps(device, operator, dtype):
    check_budget(operator, Case((9, 7), 5, stride=2, depth=8), dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.size}, {case.kernel_size}")
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_error_budget(operator, dtype, case):
    check_budget(operator, case, dtype, torch.device("cuda"))


def test_gradients_are_the_same_on_every_run(device):
    inputs = [x.to(device) for x in Attention().inputs(Case((14, 14), depth=32), torch.float16)]
    first, second = (step(*inputs[:3]) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def step(q, k, v):
    """Forward and backward by the operators, without autograd."""
    out, lse = ops.attention(q, k, v, 7, 1, 1)
    return out, *ops.attention_backward(out, q, k, v, out, lse, 7, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_layer_under_autocast(device, dtype):
    layer = ACmix2d(16, 32).to(device)
    x = torch.randn(2, 16, 14, 14).to(device)
    with torch.autocast(device.type, dtype), Recorder() as recorder:
        out = layer(x)
    out.float().square().mean().backward()
    ((op, (qkv, *_)),) = recorder.calls
    assert op is ops.paths
    assert qkv.dtype == out.dtype == dtype
    expected = layer(x)
    error = (out - expected).abs().max() / expected.abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("side", [14, 56, 112])
def test_current_stream_is_used(side):
    """A kernel on another stream would read the maps before they are filled."""
    case = Case((side, side), batch=8, heads=4, depth=32, without=("position",))
    inputs = [x.cuda() for x in Attention().inputs(case, torch.float32)[:3]]
    expected = acmix.sliding_window_attention(*inputs, backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late = [x.clone() for x in inputs]
        actual = acmix.sliding_window_attention(*late, backend="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_second_device_while_the_first_is_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    inputs = Attention().inputs(Case((14, 14), depth=16), torch.float32)
    here, there = (
        acmix.sliding_window_attention(*(x.to(f"cuda:{i}") for x in inputs)) for i in range(2)
    )
    assert there.device.index == 1
    torch.testing.assert_close(there.cpu(), here.cpu(), rtol=0, atol=0)


@pytest.mark.gpu
def test_cuda_graph_replays_forward_and_backward():
    case = Case((14, 14), heads=4, depth=32)
    static = [x.cuda() for x in Attention().inputs(case, torch.float16)[:3]]
    other = [x.flip(-1) for x in static]
    step(*static)  # Compiles, which a capture must not.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for x, y in zip(static, other, strict=True):
        x.copy_(y)
    graph.replay()
    torch.testing.assert_close(list(captured), list(step(*other)), rtol=0, atol=0)
