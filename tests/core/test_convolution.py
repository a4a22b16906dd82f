"""The convolution path of every backend against the reference, and its compiled operator."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import acmix
from acmix import ops, reference
from acmix.backends import cpu
from acmix.backends.cpu import library
from support import assert_within_error_budget, gradients

needs_kernels = pytest.mark.skipif(
    bool(cpu.why_not("convolution_path", torch.empty(0))),
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
    count = 13 if layered else 4
    maps, layer, kernels = (
        torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)
        for shape in [(2, count, 5, 6, 7), (9, count + 1), (10, 9, 3, 3)]
    )
    return maps, layer, kernels, 2


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


@needs_kernels
def test_addresses_beyond_32_bits(tmp_path):
    """Images more than 2³¹ elements apart in a sparse file."""
    qkv, *weights = path_inputs(2, 4, 5, (9, 8), dtype=torch.float32)
    apart, channels = 2**31 + 11, qkv.shape[1]
    storage = torch.from_file(str(tmp_path / "maps.bin"), shared=True, size=apart + qkv.numel())
    far = storage.as_strided(qkv.shape, (apart, 1, 8 * channels, channels)).copy_(qkv)
    near = qkv.to(memory_format=torch.channels_last)
    actual = acmix.convolution_path(far, *weights, backend="cpu")
    expected = acmix.convolution_path(near, *weights, backend="cpu")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def paths_inputs(heads, head_dim, size, kernel=3, dtype=torch.float64):
    """Arguments of ``sliding_window_paths``: projections, position, layer, kernels."""
    qkv, layer, kernels, _ = path_inputs(2, heads, head_dim, size, kernel, dtype=dtype)
    generator = torch.Generator().manual_seed(head_dim)
    position = torch.randn(head_dim, *size, generator=generator, dtype=dtype)
    return qkv, position, layer, kernels


def one_by_one(qkv, position, layer, kernels, *, kernel_size, stride, dilation):
    q, k, v = qkv.unflatten(1, (3, layer.shape[1] // 3, -1)).unbind(1)
    window = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    attention = reference.sliding_window_attention(q, k, v, position, **window)
    path = reference.convolution_path(qkv, layer, kernels, stride=stride)
    return torch.cat([attention.flatten(1, 2), path], dim=1)


def both_paths(*inputs, **options):
    return torch.cat(acmix.sliding_window_paths(*inputs, **options), dim=1)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("heads", [2, 4, 6])
@pytest.mark.parametrize(
    ("head_dim", "size"), [(16, (9, 23)), (5, (17, 14)), (3, (2, 3)), (16, (7, 7))]
)
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(7, 1, 1), (5, 2, 1), (3, 3, 2)])
def test_both_paths_match_reference(heads, head_dim, size, kernel, stride, dilation, backend):
    inputs = paths_inputs(heads, head_dim, size)
    options = dict(kernel_size=kernel, stride=stride, dilation=dilation)
    expected, expected_grads = gradients(one_by_one, *inputs, **options)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        stored = (inputs[0].to(memory_format=memory_format), *inputs[1:])
        actual, grads = gradients(both_paths, *stored, **options, backend=backend)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_both_paths_error_budget(dtype):
    options = dict(kernel_size=7, stride=1, dilation=1)
    inputs = list(paths_inputs(4, 16, (13, 11)))
    assert_within_error_budget(both_paths, one_by_one, inputs, dtype, options)


@needs_kernels
def test_both_paths_in_one_operator():
    qkv, position, layer, kernels = paths_inputs(5, 3, (6, 5))
    for requires_grad in (False, True):
        leaves = [x.clone().requires_grad_(requires_grad) for x in (qkv, position, layer, kernels)]
        torch.library.opcheck(ops.paths, (*leaves, 5, 3, 2, 1))
    out = acmix.sliding_window_paths(*leaves, kernel_size=3, stride=2, backend="cpu")
    assert out[0].grad_fn is not None
    assert out[0].grad_fn is out[1].grad_fn


def test_both_paths_of_no_images():
    qkv, *others = paths_inputs(4, 3, (9, 6))
    attention, path = acmix.sliding_window_paths(qkv[:0], *others, stride=2)
    assert attention.shape == path.shape == (0, 12, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(qkv=torch.zeros(1, 13, 5, 5)),
            r"qkv\.shape=\(1, 13, 5, 5\): give \(B, 6 \* D, H, W\)",
        ),
        (dict(position=torch.zeros(2, 5, 4)), r"position\.shape=\(2, 5, 4\): must be \(2, 5, 5\)"),
        (dict(kernels=torch.zeros(4, 8, 3, 3)), r"kernels\.shape=.*: give \(a multiple of 2, 9,"),
        (dict(kernel_size=4), "kernel_size=4: give an odd size"),
        (dict(stride=0), "stride=0: give a positive integer"),
    ],
)
@pytest.mark.parametrize("backend", [None, "torch"])
def test_wrong_arguments_of_both_paths_are_named(change, message, backend):
    arguments = dict(
        qkv=torch.zeros(1, 12, 5, 5),
        position=torch.zeros(2, 5, 5),
        fc_weight=torch.zeros(9, 6),
        kernels=torch.zeros(4, 9, 3, 3),
    )
    with pytest.raises(acmix.InputError, match=message):
        acmix.sliding_window_paths(**{**arguments, **change}, backend=backend)
