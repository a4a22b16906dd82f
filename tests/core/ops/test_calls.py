"""Calls of operators that nobody watches go to their kernels at once, and all others by torch."""

import contextlib
import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import acmix
from acmix import ops
from acmix.backends.cpu import mixing
from acmix.ops import registration
from operator_contract import needs_kernels
from operators import Case, Mix, Recorder

pytestmark = needs_kernels
CASE = Case((9, 7), 3, heads=4, depth=16, layout="channels_last")


class Subclass(torch.Tensor):
    """A tensor that may have its values elsewhere."""


class Operations(FlopCounterMode):
    """Counts, and prints no table."""

    def __init__(self):
        super().__init__(display=False)


class Functions(TorchFunctionMode):
    """Remembers the functions of torch that are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def direct(monkeypatch):
    """The calls of kernels, other than those that torch makes."""
    calls = []
    for key, kernel in registration._kernels.items():

        def count(*args, key=key, kernel=kernel):
            calls.append(key)
            return kernel(*args)

        monkeypatch.setitem(registration._kernels, key, count)
    return calls


def mix(*inputs):
    return Mix().on(CASE, "cpu")(*(inputs or Mix().inputs(CASE, torch.float32)))


def test_kernel_is_called_at_once(direct):
    with torch.no_grad():
        mix()
    with torch.inference_mode():
        mix()
    assert direct == [(ops.mixed, "cpu")] * 2


@pytest.mark.parametrize("watcher", [Recorder, Functions, profile, Operations, torch.enable_grad])
def test_watched_calls_go_through_torch(direct, watcher):
    with torch.no_grad():
        expected = mix()
        direct.clear()
        with contextlib.ExitStack() as stack:
            seen = stack.enter_context(watcher())
            actual = mix()
    assert direct == []
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    if watcher is Recorder:
        assert [op for op, _ in seen.calls] == [ops.mixed]
    if watcher is profile:
        assert "acmix::mixed" in {event.key for event in seen.key_averages()}
    if watcher is Operations:
        assert seen.get_total_flops() > 0


def test_subclasses_go_through_torch(direct):
    inputs = Mix().inputs(CASE, torch.float32)
    inputs[3] = inputs[3].as_subclass(Subclass)
    with torch.no_grad():
        out = mix(*inputs)
    assert direct == []
    assert isinstance(out, Subclass)


def test_one_tensor_in_two_places_is_no_pattern(monkeypatch):
    """The next call has two, of the same kinds."""
    monkeypatch.setattr(mixing._plans, "_plans", {})
    monkeypatch.setattr(mixing._plans, "_direct", {})
    *inputs, alpha, beta, offset = Mix().inputs(CASE, torch.float32)
    with torch.no_grad():
        for factors in ((alpha, alpha), (alpha, beta)):
            given = *inputs, *factors, offset
            expected = Mix().reference_on(CASE)(*given)
            torch.testing.assert_close(mix(*given), expected, rtol=1e-4, atol=1e-4)


def test_every_call_gives_the_same_format():
    """Maps of one channel are channels first, whatever the strides of their image say."""
    case = Case((9, 7), 3, heads=4, depth=1)
    qkv, position, *weights = Mix().inputs(case, torch.float32)
    qkv = qkv.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            assert acmix.mixed_paths(qkv, position, *weights, kernel_size=3).is_contiguous()
            assert acmix.convolution_path(qkv, *weights[:2]).is_contiguous()


def test_threads_call_the_same_plan(direct):
    """Each has its own memory, however many are in the same call."""
    inputs = [[x * (i + 1) for x in Mix().inputs(CASE, torch.float32)] for i in range(4)]
    results = [None] * 4

    def run(i):
        with torch.no_grad():
            results[i] = [mix(*inputs[i]) for _ in range(20)]

    with torch.no_grad():
        expected = [mix(*x) for x in inputs]
    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, several in zip(expected, results, strict=True):
        for result in several:
            torch.testing.assert_close(result, one, rtol=0, atol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_own_sum_of_the_paths_is_obeyed(grad):
    """By a subclass, or by whoever puts another function in its place."""

    class Doubled(acmix.ACmix2d):
        def add_paths(self, att, conv):
            return 2 * super().add_paths(att, conv)

    torch.manual_seed(0)
    plain, twice = acmix.ACmix2d(8, 16).eval(), Doubled(8, 16).eval()
    twice.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 9, 7)
    with torch.set_grad_enabled(grad):
        expected = 2 * plain(x)
        torch.testing.assert_close(twice(x), expected)
        plain.add_paths = lambda att, conv: 2 * acmix.ACmix2d.add_paths(plain, att, conv)
        torch.testing.assert_close(plain(x), expected)
