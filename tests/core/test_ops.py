"""The compiled operators against the reference: values, gradients, storage, registration."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import acmix
from acmix import ops, reference
from acmix.backends import cpu
from acmix.geometry import can_reflect
from support import assert_within_error_budget, gradients

BACKENDS = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            bool(cpu.why_not("sliding_window_attention", torch.empty(0))),
            reason="the CPU kernels can't be built here",
        ),
    ),
    "torch",
]
# What the kernels tell apart: rows longer than a vector, heads interleaved on narrow maps,
# reflected and cut borders, one pixel.
SIZES = [(9, 9), (7, 12), (17, 5), (1, 1), (3, 20), (4, 4), (2, 37)]
WINDOWS = [(7, 1, 1), (7, 2, 1), (3, 1, 2), (5, 3, 2), (9, 2, 3), (7, 1, 3), (1, 2, 1)]


def random_maps(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def window_options(kernel_size, stride, dilation, **others):
    return dict(kernel_size=kernel_size, stride=stride, dilation=dilation, **others)


def aggregation_maps(batch, channels, groups, size, window, dtype=torch.float64):
    kernel_size, stride, _ = window
    out = [-(-n // stride) for n in size]
    shapes = (batch, channels, *size), (batch, groups, kernel_size**2, *out)
    return random_maps(*shapes, dtype=dtype)


def assert_same(function, oracle, inputs, options, backend):
    expected, expected_grads = gradients(oracle, *inputs, **options)
    actual, grads = gradients(function, *inputs, **options, backend=backend)
    tolerance = dict(rtol=1e-4, atol=1e-5) if actual.dtype == torch.float32 else {}
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(grads, expected_grads, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_attention_matches_reference(size, window, dtype, backend):
    inputs = random_maps(*[(2, 3, 5, *size)] * 3, (5, *size), dtype=dtype)
    functions = acmix.sliding_window_attention, reference.sliding_window_attention
    assert_same(*functions, inputs, window_options(*window), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reflect", [True, False])
def test_aggregation_matches_reference(size, window, reflect, dtype, backend):
    reflect = reflect and can_reflect(*size, window[2] * (window[0] // 2))
    inputs = aggregation_maps(2, 12, 3, size, window, dtype)
    functions = acmix.neighbourhood_aggregation, reference.neighbourhood_aggregation
    assert_same(*functions, inputs, window_options(*window, reflect=reflect), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reflect", [True, False])
def test_difference_matches_reference(size, window, reflect, dtype, backend):
    reflect = reflect and can_reflect(*size, window[2] * (window[0] // 2))
    inputs = random_maps(*[(2, 5, *size)] * 2, dtype=dtype)
    functions = acmix.neighbourhood_difference, reference.neighbourhood_difference
    assert_same(*functions, inputs, window_options(*window, reflect=reflect), backend)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    heads=st.integers(1, 6),
    head_dim=st.integers(1, 20),
    height=st.integers(1, 24),
    width=st.integers(1, 40),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9, 11]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 4),
    backend=st.sampled_from([None, "torch"]),
)
def test_operators_match_reference_on_any_shape(
    batch, heads, head_dim, height, width, kernel_size, stride, dilation, backend
):
    window = (kernel_size, stride, dilation)
    options = window_options(*window)
    inputs = random_maps(*[(batch, heads, head_dim, height, width)] * 3)
    functions = acmix.sliding_window_attention, reference.sliding_window_attention
    assert_same(*functions, inputs, options, backend)

    options["reflect"] = can_reflect(height, width, dilation * (kernel_size // 2))
    inputs = aggregation_maps(batch, heads * head_dim, heads, (height, width), window)
    functions = acmix.neighbourhood_aggregation, reference.neighbourhood_aggregation
    assert_same(*functions, inputs, options, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
def test_error_budget(dtype, stride, backend):
    window = (7, stride, 1)
    cases = [
        ("sliding_window_attention", random_maps(*[(2, 2, 16, 13, 11)] * 3)),
        ("neighbourhood_aggregation", aggregation_maps(2, 8, 2, (13, 11), window)),
        ("neighbourhood_difference", random_maps(*[(2, 3, 13, 11)] * 2)),
    ]
    for name, inputs in cases:
        fast = functools.partial(getattr(acmix, name), backend=backend)
        plain = getattr(reference, name)
        assert_within_error_budget(fast, plain, inputs, dtype, window_options(*window))


def stored(x, layout):
    """Equal values in other storage; ``expanded`` repeats the first image."""
    channels = tuple(range(1, x.dim() - 2))
    if layout == "channels_last":
        order = (0, x.dim() - 2, x.dim() - 1, *channels)
        back = sorted(range(x.dim()), key=lambda axis: order[axis])
        return x.permute(order).contiguous().permute(back)
    if layout == "sliced":
        return torch.cat([x, x], dim=1)[:, : x.shape[1]].repeat_interleave(2, dim=-1)[..., ::2]
    return x[:1].expand_as(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("width", [7, 23])
@pytest.mark.parametrize("stride", [1, 2])
def test_operators_on_other_storage(layout, width, stride, backend):
    window = (7, stride, 1)
    cases = [
        ("sliding_window_attention", random_maps(*[(2, 2, 16, 9, width)] * 3)),
        ("neighbourhood_aggregation", aggregation_maps(2, 32, 2, (9, width), window)),
        ("neighbourhood_difference", random_maps(*[(2, 4, 9, width)] * 2)),
    ]
    for name, inputs in cases:
        views = [stored(x, layout).requires_grad_() for x in inputs]
        out = getattr(acmix, name)(*views, **window_options(*window), backend=backend)
        plain = [x.detach().contiguous().requires_grad_() for x in views]
        expected = getattr(reference, name)(*plain, **window_options(*window))
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad(out.square().sum(), views)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), plain))


def sample_calls(requires_grad):
    """One call of every forward operator, (operator, arguments)."""
    q, k, v = random_maps(*[(2, 3, 4, 7, 9)] * 3)
    values, weights = aggregation_maps(2, 6, 3, (7, 9), (3, 2, 1))
    for x in (q, k, v, values, weights):
        x.requires_grad_(requires_grad)
    last = [stored(x.detach(), "channels_last").requires_grad_(requires_grad) for x in (q, k, v)]
    return [
        (ops.attention, (q, k, v, 5, 2, 1)),
        (ops.attention, (*last, 3, 1, 2)),
        (ops.aggregation, (values, weights, 3, 2, 1, True)),
        (ops.difference, (q[:, 0], k[:, 0], 3, 2, 1, False)),
    ]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    for op, arguments in sample_calls(requires_grad):
        torch.library.opcheck(op, arguments)


def test_opcheck_of_backward_operators():
    for op, arguments in sample_calls(requires_grad=False):
        out = op(*arguments)
        out, others = (out[0], out) if isinstance(out, tuple) else (out, ())
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        backward = getattr(ops, f"{op._schema.name.removeprefix('acmix::')}_backward")
        sizes = arguments[len(tensors) :]
        torch.library.opcheck(backward, (torch.randn_like(out), *tensors, *others, *sizes))


@pytest.mark.parametrize("which", range(4))
def test_gradcheck(which):
    op, arguments = sample_calls(requires_grad=True)[which]
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    sizes = arguments[len(tensors) :]

    def run(*tensors):
        out = op(*tensors, *sizes)
        return out[0] if isinstance(out, tuple) else out

    leaves = [x.detach()[:1, ..., :5].clone().requires_grad_() for x in tensors]
    if op is ops.aggregation:
        leaves[1] = leaves[1].detach()[..., :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-6, rtol=1e-4, nondet_tol=0)


def test_second_derivative_is_refused():
    q, k, v = (x.requires_grad_() for x in random_maps(*[(1, 1, 2, 5, 5)] * 3))
    out = ops.attention(q, k, v, 3, 1, 1)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only: use backend='torch'"):
        grad.sum().backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_operators_compile_without_a_break():
    q, k, v = random_maps(*[(1, 2, 4, 9, 8)] * 3, dtype=torch.float32)
    values, weights = aggregation_maps(1, 8, 2, (9, 8), (3, 1, 1), torch.float32)

    def run(q, k, v, values, weights):
        out = acmix.sliding_window_attention(q, k, v).sum()
        out = out + acmix.neighbourhood_aggregation(values, weights, kernel_size=3).sum()
        return out + acmix.neighbourhood_difference(values, kernel_size=3).square().sum()

    inputs = [x.requires_grad_() for x in (q, k, v, values, weights)]
    compiled = torch.compile(run, fullgraph=True)
    out, expected = compiled(*inputs), run(*inputs)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs), torch.autograd.grad(expected, inputs)
    )


def test_layer_exports_with_the_operator():
    layer = acmix.ACmix2d(8, 8, kernel_att=3).eval()
    x = torch.randn(2, 8, 7, 6)
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(w=torch.zeros(1, 3, 9, 5, 5)), r"w\.shape=.*give \(1, a divisor of 4, 9, 5, 5\)"),
        (dict(w=torch.zeros(1, 2, 9, 5, 4)), r"w\.shape="),
        (
            dict(w=torch.zeros(1, 2, 9, 5, 5).double()),
            "w=torch.float64 on cpu: must be torch.float",
        ),
        (dict(v=torch.zeros(4, 5, 5)), r"v\.shape=\(4, 5, 5\): give it as \(B, C, H, W\)"),
        (dict(kernel_size=2), "kernel_size=2: give an odd size"),
        (dict(stride=0), "stride=0: give a positive integer"),
    ],
)
def test_wrong_arguments_of_aggregation_are_named(change, message):
    arguments = dict(v=torch.zeros(1, 4, 5, 5), w=torch.zeros(1, 2, 9, 5, 5), kernel_size=3)
    with pytest.raises(acmix.InputError, match=message):
        acmix.neighbourhood_aggregation(**{**arguments, **change})


def test_wrong_arguments_of_difference_are_named():
    with pytest.raises(acmix.InputError, match=r"b\.shape=\(1, 4, 5, 6\): must be \(1, 4, 5, 5\)"):
        acmix.neighbourhood_difference(
            torch.zeros(1, 4, 5, 5), torch.zeros(1, 4, 5, 6), kernel_size=3
        )


def test_border_too_small_to_reflect_reads_zeros():
    a = torch.randn(1, 2, 2, 3)
    actual = acmix.neighbourhood_difference(a, kernel_size=7)
    expected = reference.neighbourhood_difference(a, a, kernel_size=7, reflect=False)
    torch.testing.assert_close(actual, expected)


def test_not_a_number_stays_one():
    q, k, v = random_maps(*[(1, 1, 4, 9, 20)] * 3, dtype=torch.float32)
    q[0, 0, 0, 4, 5] = float("nan")
    out = acmix.sliding_window_attention(q, k, v, kernel_size=3)
    assert out[0, 0, :, 4, 5].isnan().all()
    assert int(out.isnan().sum()) == 4
