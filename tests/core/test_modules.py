"""ACmix layers: the authors' tensors, the modes of the paper's tables, every kind of input."""

import copy

import pytest
import torch

import acmix
from acmix import ACmix2d, WindowACmix
from support import golden

CONV_CASES = ["acmix2d_s1", "acmix2d_s2", "acmix2d_k5h2"]
BACKENDS = ["torch", "reference"]


def assert_reproduces(layer, case, *inputs):
    x = case["input"].clone().requires_grad_()
    out = layer(x, *inputs)
    assert (out - case["output"]).abs().max() <= 1e-5
    out.backward(case["grad_output"])
    expected = {"input": case["grad_input"], **case["grad_params"]}
    actual = {"input": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        scale = max(grad.abs().max().item(), 1.0 if name == "conv_p.bias" else 0.0)
        assert (actual[name] - grad).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONV_CASES)
def test_acmix2d_reproduces_the_released_code(name, backend):
    case = golden("acmix_conv2d.pt")[name]
    config = dict(case["config"])
    config["num_heads"] = config.pop("head")
    layer = ACmix2d(**config, backend=backend)
    layer.load_state_dict(case["state_dict"])
    assert_reproduces(layer, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "masked"])
def test_window_acmix_reproduces_the_released_code(name, backend):
    case = golden("acmix_window.pt")[name]
    layer = WindowACmix(**case["config"], backend=backend)
    layer.load_state_dict(case["state_dict"])
    assert_reproduces(layer, case, case["mask"])


def conv_layer(**options):
    torch.manual_seed(0)
    return ACmix2d(6, 8, num_heads=2, **options)


def window_layer(**options):
    torch.manual_seed(0)
    return WindowACmix(8, 4, 2, **options)


LAYERS = {
    "acmix2d": (conv_layer, lambda *size: torch.randn(2, 6, *size)),
    "window": (window_layer, lambda *size: torch.randn(2, *size, 8)),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    return LAYERS[request.param]


@pytest.mark.parametrize("mix", acmix.MIX_MODES)
@pytest.mark.parametrize("shift", acmix.SHIFT_MODES)
def test_every_mode_trains(kind, mix, shift):
    make, data = kind
    layer = make(mix=mix, shift=shift)
    layer(data(8, 8)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("mix", "alpha", "beta"),
    [
        ("alpha_beta", 0.3, 0.9),
        ("alpha_complement", 0.3, 0.7),
        ("alpha_one", 0.3, 1),
        ("one_one", 1, 1),
        ("attention", 1, 0),
        ("convolution", 0, 1),
    ],
)
def test_mix_modes_add_the_paths_as_table_6_says(kind, mix, alpha, beta):
    make, data = kind
    x = data(8, 8)
    paths = make(mix="alpha_beta").eval()
    outs = []
    for rates in ((1.0, 0.0), (0.0, 1.0)):
        paths.load_state_dict(
            {"rate1": torch.tensor(rates[:1]), "rate2": torch.tensor(rates[1:])}, strict=False
        )
        outs.append(paths(x))
    layer = make(mix=mix).eval()
    layer.load_state_dict({k: v for k, v in paths.state_dict().items() if k in layer.state_dict()})
    rates = {"rate1": torch.tensor([0.3]), "rate2": torch.tensor([0.9])}
    layer.load_state_dict({k: v for k, v in rates.items() if hasattr(layer, k)}, strict=False)
    torch.testing.assert_close(layer(x), alpha * outs[0] + beta * outs[1])


def test_rates_start_at_one_half(kind):
    layer = kind[0]()
    assert layer.rate1.item() == layer.rate2.item() == 0.5


@pytest.mark.parametrize("stride", [1, 2])
def test_learnable_shifts_start_as_tensor_shifts(stride):
    x = torch.randn(2, 6, 7, 9)
    outs = [conv_layer(shift=shift, stride=stride) for shift in ("tensor", "fixed", "learnable")]
    for layer in outs:
        layer.load_state_dict(
            {k: v for k, v in outs[0].state_dict().items() if k in layer.state_dict()}, strict=False
        )
    tensor, fixed, learnable = (layer(x) for layer in outs)
    torch.testing.assert_close(fixed, tensor)
    torch.testing.assert_close(learnable, tensor)


def test_random_shifts_differ_from_the_shifts():
    weight = conv_layer(shift="random").dep_conv.weight
    assert not torch.equal(weight, conv_layer().dep_conv.weight)
    assert weight.requires_grad


@pytest.mark.parametrize("shift", ["tensor", "fixed"])
def test_fixed_shifts_have_no_parameters(shift):
    assert not [name for name in conv_layer(shift=shift).state_dict() if "dep_conv" in name]


def test_initialisation_by_layer_class_leaves_the_shifts_alone():
    layer = conv_layer()
    before = copy.deepcopy(layer.dep_conv.weight)

    def reset(module):
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.normal_(module.weight)

    layer.apply(reset)
    assert torch.equal(layer.dep_conv.weight, before)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 9), (13, 7), (8, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_acmix2d_has_the_size_of_a_strided_convolution(size, stride, dilation):
    layer = conv_layer(stride=stride, dilation=dilation)
    plain = torch.nn.Conv2d(6, 8, 3, stride=stride, padding=1)
    x = torch.randn(2, 6, *size)
    assert layer(x).shape == plain(x).shape
    torch.testing.assert_close(layer(x), _as_reference(layer)(x))


@pytest.mark.parametrize("kernel_conv", [1, 3, 5])
def test_acmix2d_with_other_convolution_kernels(kernel_conv):
    layer = conv_layer(kernel_conv=kernel_conv)
    x = torch.randn(2, 6, 6, 9)
    torch.testing.assert_close(layer(x), _as_reference(layer)(x))


def test_window_acmix_pads_sizes_that_windows_do_not_divide():
    layer = window_layer()
    x = torch.randn(2, 6, 9, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 3, 0, 2))
    torch.testing.assert_close(layer(x), layer(padded)[:, :6, :9])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_layers_run_in_other_dtypes(kind, dtype):
    make, data = kind
    layer, x = make(), data(9, 7)
    expected = layer(x)
    actual = layer.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    tolerance = (
        4 * torch.finfo(dtype).eps * max(1.0, x.abs().max().item())
        if dtype != torch.float64
        else 1e-5
    )
    torch.testing.assert_close(actual.float(), expected, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_train_under_autocast(kind, dtype):
    make, data = kind
    layer = make()
    with torch.autocast("cpu", dtype=dtype):
        out = layer(data(9, 7))
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_acmix2d_channels_last_equals_contiguous():
    layer, x = conv_layer(stride=2), torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


def test_layers_take_no_images(kind):
    make, data = kind
    out = make()(data(8, 8)[:0])
    out.sum().backward()
    assert out.shape[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(stride=2), dict(dilation=2)], ids=str)
def test_acmix2d_compiles_in_one_graph(options):
    layer = conv_layer(**options)
    x = torch.randn(2, 6, 9, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()


@pytest.mark.slow
def test_window_acmix_compiles_in_one_graph():
    layer, x = window_layer(), torch.randn(2, 9, 7, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.slow
def test_layers_export(kind):
    make, data = kind
    layer, x = make().eval(), data(9, 7)
    program = torch.export.export(layer, (x,))
    # Whoever runs the program need not have acmix.
    assert not [n for n in program.graph.nodes if "acmix" in str(n.target)]
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.slow
def test_layers_run_as_onnx(kind, tmp_path):
    pytest.importorskip(
        "onnxscript", reason="onnxscript is not installed (pip install acmix[onnx])"
    )
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    make, data = kind
    layer, x = make().eval(), data(9, 7)
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), layer(x).detach())


def test_layers_copy_and_save(kind, tmp_path):
    make, data = kind
    layer, x = make().eval(), data(8, 8)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = make(mix="alpha_beta").eval()
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_layers_print_their_settings(kind):
    assert "mix='one_one'" in repr(kind[0](mix="one_one"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ACmix2d(8, 10), r"dim=10: must be a multiple of num_heads=4"),
        (lambda: ACmix2d(8, 8, num_heads=0), r"num_heads=0: give a positive integer"),
        (lambda: ACmix2d(8, 8, kernel_att=6), r"kernel_att=6: give an odd size"),
        (lambda: ACmix2d(8, 8, kernel_conv=2), r"kernel_conv=2: give an odd size"),
        (lambda: ACmix2d(8, 8, stride=0), r"stride=0"),
        (lambda: ACmix2d(8, 8, mix="alpha_betta"), r"mix='alpha_betta'.*did you mean 'alpha_beta'"),
        (lambda: ACmix2d(8, 8, shift="fix"), r"shift='fix': choose from .*did you mean 'fixed'"),
        (lambda: WindowACmix(8, 0, 2), r"window_size=0"),
        (
            lambda: ACmix2d(8, 8)(torch.zeros(1, 4, 5, 5)),
            r"input shape=\(1, 4, 5, 5\): give \(B, 8, H, W\)",
        ),
        (lambda: WindowACmix(8, 4, 2)(torch.zeros(1, 5, 5, 4)), r"give \(B, H, W, 8\)"),
        (
            lambda: WindowACmix(8, 4, 2)(torch.zeros(1, 8, 8, 8), torch.zeros(3, 16, 16)),
            r"mask=\(3, 16, 16\): give \(nW, 16, 16\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(acmix.InputError, match=message):
        make()


def _as_reference(layer):
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    return twin
