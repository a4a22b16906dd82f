"""Every backend against the reference: values, gradients, dtypes, layouts, shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import acmix
from acmix import reference
from support import assert_within_error_budget, gradients

SIZES = [(9, 9), (7, 12), (17, 5), (1, 1), (2, 3), (3, 20), (8, 8), (4, 4)]


def qkv_maps(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_sliding_window_matches_reference(size, stride, dilation):
    q, k, v = qkv_maps(2, 2, 3, *size)
    position = torch.randn(3, *size, dtype=torch.float64)
    options = dict(kernel_size=7, stride=stride, dilation=dilation)

    expected, expected_grads = gradients(
        reference.sliding_window_attention, q, k, v, position, **options
    )
    actual, grads = gradients(acmix.sliding_window_attention, q, k, v, position, **options)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grads, expected_grads)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 4),
    positioned=st.booleans(),
)
def test_sliding_window_matches_reference_on_any_shape(
    batch, heads, head_dim, height, width, kernel_size, stride, dilation, positioned
):
    q, k, v = qkv_maps(batch, heads, head_dim, height, width)
    position = torch.randn(head_dim, height, width, dtype=torch.float64) if positioned else None
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)

    actual = acmix.sliding_window_attention(q, k, v, position, **options)

    assert actual.shape == (batch, heads, head_dim, -(-height // stride), -(-width // stride))
    expected = reference.sliding_window_attention(q, k, v, position, **options)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [((5, 7), 1, 1), ((9, 6), 2, 1), ((7, 8), 1, 2), ((2, 3), 1, 1)]
)
def test_sliding_window_gradcheck(size, stride, dilation):
    inputs = [x.requires_grad_() for x in qkv_maps(1, 2, 2, *size)]
    position = torch.randn(2, *size, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, position):
        return acmix.sliding_window_attention(
            q, k, v, position, kernel_size=5, stride=stride, dilation=dilation
        )

    assert torch.autograd.gradcheck(run, (*inputs, position), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_only_differences_of_the_position_count():
    q, k, v = qkv_maps(1, 2, 4, 9, 9)
    position = torch.randn(4, 9, 9, dtype=torch.float64)
    shifted = position + torch.randn(4, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        acmix.sliding_window_attention(q, k, v, position),
        acmix.sliding_window_attention(q, k, v, shifted),
    )


def test_window_on_a_small_map_is_cut_to_the_image():
    q, k, v = qkv_maps(1, 2, 4, 3, 3)
    everything = torch.softmax(
        torch.einsum("bndp,bndr->bnpr", q.flatten(3), k.flatten(3)) / 2, dim=-1
    )
    expected = torch.einsum("bnpr,bndr->bndp", everything, v.flatten(3)).unflatten(-1, (3, 3))
    torch.testing.assert_close(acmix.sliding_window_attention(q, k, v, kernel_size=7), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
def test_sliding_window_error_budget(dtype, stride):
    inputs = [*qkv_maps(2, 2, 16, 13, 11), torch.randn(16, 13, 11, dtype=torch.float64)]
    options = dict(kernel_size=7, stride=stride)
    assert_within_error_budget(
        acmix.sliding_window_attention, reference.sliding_window_attention, inputs, dtype, options
    )


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_sliding_window_on_other_storage(layout, backend):
    q, k, v = qkv_maps(2, 2, 4, 9, 10)
    views = {
        "channels_last": lambda x: (
            x.flatten(1, 2).to(memory_format=torch.channels_last).unflatten(1, (2, 4))
        ),
        "sliced": lambda x: torch.cat([x, x], dim=1)[:, :2].repeat_interleave(2, dim=-1)[..., ::2],
        "expanded": lambda x: x[:1].expand(2, -1, -1, -1, -1),
    }
    q2, k2, v2 = (views[layout](x) for x in (q, k, v))
    torch.testing.assert_close(
        acmix.sliding_window_attention(q2, k2, v2, backend=backend),
        reference.sliding_window_attention(q2.contiguous(), k2.contiguous(), v2.contiguous()),
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operator makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Views take no memory of their own.
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and not func.is_view]
        self.numel = max([self.numel, *(x.numel() for x in made)])
        return out


@pytest.mark.parametrize("stride", [1, 2])
def test_no_map_is_copied_for_every_window_pixel(stride):
    q, k, v = (x.float().requires_grad_() for x in qkv_maps(1, 4, 16, 56, 56))
    position = torch.randn(16, 56, 56, requires_grad=True)
    with LargestTensor() as forward:
        out = acmix.sliding_window_attention(q, k, v, position, stride=stride)
    with LargestTensor() as backward:
        out.sum().backward()
    # A tile's halo is (8 + 6)² keys for 8² queries, or (2 * 7 + 7)² of a 16² map with stride 2.
    assert max(forward.numel, backward.numel) <= 3.5 * q.numel()


def path_arguments(heads, head_dim, size, kernel=3, per_group=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(heads * head_dim)
    taps = kernel**2
    shapes = [
        (2, 3 * heads * head_dim, *size),
        (taps, 3 * heads),
        (head_dim * (per_group or heads), taps, kernel, kernel),
        (taps,),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("heads", "per_group", "kernel"), [(4, None, 3), (3, 1, 3), (1, 2, 5), (2, None, 1)]
)
def test_convolution_path_matches_reference(size, stride, heads, per_group, kernel):
    arguments = path_arguments(heads, 4, size, kernel, per_group)
    expected, expected_grads = gradients(reference.convolution_path, *arguments, stride=stride)
    actual, grads = gradients(acmix.convolution_path, *arguments, stride=stride)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_path_by_tensor_shifts(stride):
    qkv, weight, _, bias = path_arguments(2, 3, (9, 6))
    expected = reference.convolution_path(qkv, weight, None, bias, stride=stride)
    actual = acmix.convolution_path(qkv, weight, None, bias, stride=stride)
    torch.testing.assert_close(actual, expected)


def test_convolution_path_gradcheck():
    arguments = [x.requires_grad_() for x in path_arguments(2, 2, (4, 5))]
    assert torch.autograd.gradcheck(acmix.convolution_path, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_convolution_path_error_budget(dtype):
    arguments = path_arguments(4, 8, (13, 11))
    assert_within_error_budget(
        acmix.convolution_path, reference.convolution_path, arguments, dtype, dict(stride=2)
    )


def test_convolution_path_of_no_images():
    qkv, *others = path_arguments(2, 3, (9, 6))
    assert acmix.convolution_path(qkv[:0], *others, stride=2).shape == (0, 6, 5, 3)


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_matches_reference(masked):
    q, k, v = (torch.randn(6, 2, 12, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(2, 12, 12, dtype=torch.float64)
    mask = torch.randn(3, 12, 12, dtype=torch.float64) if masked else None
    expected, expected_grads = gradients(reference.window_attention, q, k, v, bias, mask)
    actual, grads = gradients(acmix.window_attention, q, k, v, bias, mask)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_window_attention_error_budget(dtype):
    inputs = [torch.randn(6, 2, 49, 16, dtype=torch.float64) for _ in range(3)]
    bias = torch.randn(2, 49, 49, dtype=torch.float64)
    assert_within_error_budget(
        acmix.window_attention, reference.window_attention, [*inputs, bias], dtype, {}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(k=torch.zeros(1, 2, 3, 4, 6)),
            r"k\.shape=\(1, 2, 3, 4, 6\): must be \(1, 2, 3, 4, 5\)",
        ),
        (dict(q=torch.zeros(3, 4, 5)), r"q\.shape=\(3, 4, 5\): give it as \(B, N, D, H, W\)"),
        (dict(position=torch.zeros(2, 4, 5)), r"position\.shape"),
        (dict(kernel_size=4), r"kernel_size=4: give an odd size"),
        (dict(stride=0), r"stride=0: give a positive integer"),
        (dict(dilation=1.0), r"dilation=1\.0: give a positive integer"),
        (
            dict(backend="troch"),
            r"backend='troch': choose from cuda, cpu, torch, reference; did you mean 'torch'\?",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x = torch.zeros(1, 2, 3, 4, 5)
    with pytest.raises(acmix.InputError, match=message):
        acmix.sliding_window_attention(**{**dict(q=x, k=x, v=x), **change})


def test_integers_find_no_backend():
    x = torch.zeros(1, 1, 1, 4, 4, dtype=torch.int64)
    with pytest.raises(acmix.BackendError, match="torch: dtype torch.int64 is not floating point"):
        acmix.sliding_window_attention(x, x, x)


NEIGHBOURHOODS = [
    dict(kernel_size=kernel, stride=stride, dilation=dilation, reflect=reflect)
    for kernel, stride, dilation in [(3, 1, 1), (5, 2, 1), (3, 1, 2), (7, 3, 1), (1, 2, 3)]
    for reflect in (True, False)
]


@pytest.mark.parametrize("options", NEIGHBOURHOODS, ids=str)
def test_neighbourhood_operators_match_reference(options):
    v, a, b = (torch.randn(2, 6, 9, 7, dtype=torch.float64) for _ in range(3))
    size = [-(-s // options["stride"]) for s in (9, 7)]
    w = torch.randn(2, 3, options["kernel_size"] ** 2, *size, dtype=torch.float64)
    for name, inputs in (("aggregation", (v, w)), ("difference", (a, b))):
        fast = getattr(acmix, f"neighbourhood_{name}")
        plain = getattr(reference, f"neighbourhood_{name}")
        expected, expected_grads = gradients(plain, *inputs, **options)
        actual, grads = gradients(fast, *inputs, **options)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_neighbourhood_operators_error_budget(dtype):
    options = dict(kernel_size=5, stride=1, dilation=1, reflect=True)
    v, w = torch.randn(2, 8, 9, 8).double(), torch.randn(2, 4, 25, 9, 8).double()
    for name, inputs in (("aggregation", [v, w]), ("difference", [v, v.flip(0)])):
        fast = getattr(acmix, f"neighbourhood_{name}")
        plain = getattr(reference, f"neighbourhood_{name}")
        assert_within_error_budget(fast, plain, inputs, dtype, options)


def test_neighbourhood_operators_of_no_images():
    v, w = torch.zeros(0, 4, 5, 6), torch.zeros(0, 2, 9, 5, 6)
    assert acmix.neighbourhood_aggregation(v, w, kernel_size=3).shape == (0, 4, 5, 6)
    assert acmix.neighbourhood_difference(v, v, kernel_size=3).shape == (0, 4, 9, 5, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(w=torch.zeros(1, 3, 9, 5, 6)), r"w\.shape=.*: give \(1, a divisor of 4, 9, 5, 6\)"),
        (dict(w=torch.zeros(1, 2, 9, 5, 5)), r"w\.shape=\(1, 2, 9, 5, 5\): give"),
        (
            dict(w=torch.zeros(1, 2, 9, 5, 6).half()),
            "w=torch.float16 on cpu: must be torch.float32",
        ),
        (dict(kernel_size=2), "kernel_size=2: give an odd size"),
    ],
)
def test_wrong_neighbourhoods_are_named(change, message):
    arguments = dict(v=torch.zeros(1, 4, 5, 6), w=torch.zeros(1, 2, 9, 5, 6), kernel_size=3)
    with pytest.raises(acmix.InputError, match=message):
        acmix.neighbourhood_aggregation(**{**arguments, **change})


def test_a_map_too_small_to_reflect_has_zeros_around():
    v, w = torch.randn(1, 4, 3, 6), torch.randn(1, 2, 49, 3, 6)
    torch.testing.assert_close(
        acmix.neighbourhood_aggregation(v, w, kernel_size=7),
        acmix.neighbourhood_aggregation(v, w, kernel_size=7, reflect=False),
    )
