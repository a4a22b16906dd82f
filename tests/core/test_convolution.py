"""The convolution path of every backend against the reference, and its compiled operator."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import acmix
from acmix import ops, reference
from acmix.backends import cpu_backend
from acmix.native import library
from support import assert_within_error_budget, gradients

needs_kernels = pytest.mark.skipif(
    bool(cpu_backend.why_not("convolution_path", torch.empty(0))),
    reason="the CPU kernels can't be built here",
)
BACKENDS = [pytest.param("cpu", marks=needs_kernels), "torch"]


def path_inputs(batch, heads, head_dim, size, kernel=3, bias=True, dtype=torch.float64):
    """Arguments of ``convolution_path``: maps, layer, kernels, bias or ``None``."""
    generator = torch.Generator().manual_seed(heads * head_dim + sum(size))
    taps, maps = kernel**2, 3 * heads
    shapes = [
        (batch, maps * head_dim, *size),
        (taps, maps),
        (head_dim * heads, taps, kernel, kernel),
    ]
    inputs = [torch.randn(s, generator=generator, dtype=dtype) for s in (*shapes, (taps,))]
    return inputs if bias else [*inputs[:3], None]


def assert_same(inputs, stride, backend, **tolerance):
    expected, expected_grads = gradients(reference.convolution_path, *inputs, stride=stride)
    fast = functools.partial(acmix.convolution_path, backend=backend)
    actual, grads = gradients(fast, *inputs, stride=stride)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(grads, expected_grads, **tolerance)


# Folded and layered, whole and partly filled vectors, rows of several bands, one pixel.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [1, 4, 5, 6, 8])
@pytest.mark.parametrize(
    ("head_dim", "size", "kernel"),
    [(16, (9, 7), 3), (5, (3, 20), 5), (33, (6, 6), 3), (1, (1, 1), 3), (8, (40, 37), 3)],
)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_path_matches_reference(heads, head_dim, size, kernel, stride, dtype, backend):
    inputs = path_inputs(2, heads, head_dim, size, kernel, bias=stride < 3, dtype=dtype)
    # Sums of up to 2 * 40 * 37 products of order one.
    tolerance = dict(rtol=1e-4, atol=2e-3) if dtype == torch.float32 else {}
    assert_same(inputs, stride, backend, **tolerance)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    heads=st.integers(1, 9),
    head_dim=st.integers(1, 20),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 4),
    bias=st.booleans(),
)
def test_path_matches_reference_on_any_shape(
    batch, heads, head_dim, height, width, kernel, stride, bias
):
    assert_same(path_inputs(batch, heads, head_dim, (height, width), kernel, bias), stride, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heads", [4, 6])
def test_path_error_budget(heads, dtype, backend):
    fast = functools.partial(acmix.convolution_path, backend=backend)
    inputs = path_inputs(2, heads, 8, (13, 11))
    assert_within_error_budget(fast, reference.convolution_path, inputs, dtype, dict(stride=2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_path_on_other_storage(layout, heads, backend):
    qkv, *weights = path_inputs(2, heads, 16, (9, 7))
    if layout == "channels_last":
        view = qkv.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        view = torch.cat([qkv, qkv], dim=1)[:, : qkv.shape[1]].repeat_interleave(2, -1)[..., ::2]
    else:
        view = qkv[:1].expand_as(qkv)
    view.requires_grad_()
    plain = view.detach().contiguous().requires_grad_()
    out = acmix.convolution_path(view, *weights, backend=backend)
    expected = reference.convolution_path(plain, *weights)
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), view)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), plain)[0])


@needs_kernels
@pytest.mark.parametrize("last", [False, True])
def test_result_has_the_memory_format_of_the_maps(last):
    qkv, *weights = path_inputs(2, 4, 16, (9, 7))
    if last:
        qkv = qkv.to(memory_format=torch.channels_last)
    out = acmix.convolution_path(qkv, *weights, backend="cpu")
    assert out.is_contiguous(memory_format=torch.channels_last) == last


def operator_arguments(layered, requires_grad=False):
    maps, layer, kernels = (
        torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)
        for shape in [(2, 4, 5, 6, 7), (9, 5), (10, 9 if layered else 5, 3, 3)]
    )
    return maps, layer if layered else None, kernels, 2


@needs_kernels
@pytest.mark.parametrize("layered", [False, True])
def test_operator_registration_and_gradients(layered):
    for requires_grad in (False, True):
        torch.library.opcheck(ops.convolution, operator_arguments(layered, requires_grad))
    arguments = operator_arguments(layered)
    grad = torch.randn_like(ops.convolution(*arguments))
    torch.library.opcheck(ops.convolution_backward, (grad, *arguments))
    leaves = operator_arguments(layered, requires_grad=True)
    assert torch.autograd.gradcheck(ops.convolution, leaves, nondet_tol=0)


@needs_kernels
@pytest.mark.parametrize("isa", library.ISAS)
@pytest.mark.parametrize("heads", [3, 8])
def test_every_variant_matches_reference(isa, heads, monkeypatch):
    if isa not in library.load().isas:
        pytest.skip(f"this machine can't run {isa}")
    monkeypatch.setattr(library.load(), "isa", isa)
    for head_dim in (3, 16, 37):
        assert_same(path_inputs(2, heads, head_dim, (11, 9)), 1, "cpu")


@needs_kernels
def test_result_does_not_depend_on_the_threads():
    inputs = path_inputs(3, 5, 20, (40, 33), dtype=torch.float32)
    fast = functools.partial(acmix.convolution_path, backend="cpu")
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(gradients(fast, *inputs))
    finally:
        torch.set_num_threads(threads)
    for out, grads in results[1:]:
        assert torch.equal(out, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))
