"""The kernels' own text on the CPU against plain torch: values, gradients, dtypes, shapes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acmix.cuda import kernels
from cuda_emulator.operators import (
    aggregation,
    aggregation_maps,
    attention,
    maps,
    plain_aggregation,
    plain_attention,
    plain_subtraction,
    reflects,
    subtraction,
)
from support import assert_within_error_budget, gradients

pytestmark = pytest.mark.usefixtures("emulated")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(9, 9), (7, 12), (17, 5), (1, 1), (2, 3), (3, 20), (8, 8), (4, 4)]
ANY_SHAPE = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PAIRS = {
    "attention": (attention, plain_attention),
    "aggregation": (aggregation, plain_aggregation),
    "subtraction": (subtraction, plain_subtraction),
}


def check_gradients(op, inputs, **options):
    fast, plain = PAIRS[op]
    expected, expected_grads = gradients(plain, *inputs, **options)
    actual, grads = gradients(fast, *inputs, **options)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
def test_attention_matches_plain(size, stride, dilation, kernel_size):
    # Float, since 7×7 windows have no tiled kernel in double; the budget has its own test.
    inputs = maps(*[(2, 2, 3, *size)] * 3, dtype=torch.float32)
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    check_gradients("attention", inputs, **options)


@pytest.mark.parametrize(
    ("size", "heads", "head_dim"),
    [((14, 14), 4, 16), ((7, 7), 4, 33), ((33, 18), 1, 17), ((1, 1), 70, 1), ((5, 40), 3, 128)],
)
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("enough_blocks", [1, 264])
def test_attention_of_many_tiles_and_chunks(
    monkeypatch, size, heads, head_dim, kernel_size, enough_blocks
):
    monkeypatch.setattr(kernels, "_ENOUGH_BLOCKS", enough_blocks)
    inputs = maps(*[(1, heads, head_dim, *size)] * 3, dtype=torch.float32)
    check_gradients("attention", inputs, kernel_size=kernel_size)


def test_attention_of_256_channels():
    check_gradients("attention", maps(*[(1, 1, 256, 4, 5)] * 3), kernel_size=3)


@ANY_SHAPE
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 19),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
)
def test_attention_of_any_shape(batch, heads, head_dim, size, kernel_size, stride, dilation):
    inputs = maps(*[(batch, heads, head_dim, *size)] * 3)
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    check_gradients("attention", inputs, **options)


@ANY_SHAPE
@given(
    batch=st.integers(0, 2),
    channels=st.integers(1, 20),
    groups=st.integers(1, 4),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    reflect=st.booleans(),
)
def test_aggregation_of_any_shape(
    batch, channels, groups, size, kernel_size, stride, dilation, reflect
):
    inputs = aggregation_maps(batch, channels, groups, size, kernel_size, stride)
    reflect = reflect and reflects(size, kernel_size, dilation)
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, reflect=reflect)
    check_gradients("aggregation", inputs, **options)


@ANY_SHAPE
@given(
    batch=st.integers(0, 2),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    reflect=st.booleans(),
)
def test_subtraction_of_any_shape(batch, channels, size, kernel_size, stride, dilation, reflect):
    inputs = maps(*[(batch, channels, *size)] * 2)
    reflect = reflect and reflects(size, kernel_size, dilation)
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, reflect=reflect)
    check_gradients("subtraction", inputs, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(3, 1, 1), (7, 1, 1), (7, 2, 1), (5, 1, 2)])
@pytest.mark.parametrize("size", [(13, 11), (3, 2)])
def test_attention_error_budget(dtype, window, size):
    inputs = maps(*[(2, 2, 16, *size)] * 3)
    options = dict(zip(("kernel_size", "stride", "dilation"), window, strict=True))
    assert_within_error_budget(attention, plain_attention, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reflect", [True, False])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (7, 2), (9, 1)])
def test_aggregation_error_budget(dtype, reflect, kernel_size, stride):
    inputs = aggregation_maps(2, 16, 2, (13, 11), kernel_size, stride)
    options = dict(kernel_size=kernel_size, stride=stride, reflect=reflect)
    assert_within_error_budget(aggregation, plain_aggregation, inputs, dtype, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reflect", [True, False])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (7, 2), (9, 1)])
def test_subtraction_error_budget(dtype, reflect, kernel_size, stride):
    inputs = maps(*[(2, 4, 13, 11)] * 2)
    options = dict(kernel_size=kernel_size, stride=stride, reflect=reflect)
    assert_within_error_budget(subtraction, plain_subtraction, inputs, dtype, options)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 1, 2), (7, 1, 1)]
)
def test_attention_gradcheck(kernel_size, stride, dilation):
    inputs = [x.requires_grad_() for x in maps(*[(1, 2, 2, 5, 6)] * 3)]
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    run = lambda q, k, v: attention(q, k, v, **options)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_attention_on_other_storage(layout):
    views = {
        "channels_last": lambda x: (
            x.flatten(1, 2).to(memory_format=torch.channels_last).unflatten(1, x.shape[1:3])
        ),
        "sliced": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        "expanded": lambda x: x[:1].expand(2, -1, -1, -1, -1),
    }
    inputs = [views[layout](x) for x in maps(*[(2, 2, 4, 9, 10)] * 3)]
    options = dict(kernel_size=7, stride=2)
    torch.testing.assert_close(attention(*inputs, **options), plain_attention(*inputs, **options))


def test_log_sum_exp_stays_finite_where_logits_are_large():
    q, k, v = (300 * x for x in maps(*[(1, 1, 4, 9, 9)] * 3, dtype=torch.float16))
    out, grads = gradients(attention, q, k, v, kernel_size=7)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("op", list(PAIRS))
def test_order_of_threads_does_not_matter(emulate, op, order):
    fast, _ = PAIRS[op]
    shapes = {"attention": [(1, 2, 5, 17, 12)] * 3, "subtraction": [(1, 3, 17, 12)] * 2}
    shapes["aggregation"] = [(1, 6, 17, 12), (1, 2, 49, 17, 12)]
    inputs = maps(*shapes[op], dtype=torch.float32)
    expected = gradients(fast, *inputs, kernel_size=7)
    emulate(order=order)
    torch.testing.assert_close(gradients(fast, *inputs, kernel_size=7), expected, rtol=0, atol=0)
