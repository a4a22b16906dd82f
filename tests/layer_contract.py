"""What holds for every layer; a test file of a layer inherits it."""

import copy

import pytest
import torch
from torch import Tensor

import acmix
from acmix import reference
from layers import Layer, randomised
from support import assert_module_within_error_budget, gradients

# Factors of the two paths, the rates being 0.3 and 0.9 (paper Table 6).
FACTORS = {
    "alpha_beta": (0.3, 0.9),
    "alpha_complement": (0.3, 0.7),
    "alpha_one": (0.3, 1),
    "one_one": (1, 1),
    "attention": (1, 0),
    "convolution": (0, 1),
}


class LayerContract:
    """Tests of any layer; ``layer`` is the one, and its equations are written in the test file."""

    layer: Layer

    def attention(self, layer, *inputs) -> Tensor:
        """F_att, as the output is stored."""
        raise NotImplementedError

    def projections(self, layer, *inputs) -> Tensor:
        """The maps that the convolution path reads, (B, maps * D, H, W)."""
        raise NotImplementedError

    def as_output(self, convolution: Tensor, *inputs) -> Tensor:
        """F_conv, (B, C, H, W), as the output is stored."""
        return convolution

    def sample(self, size=(9, 7), **options):
        """A layer in double precision with parameters of any value, and its arguments."""
        layer = randomised(self.layer.make(**options)).double().eval()
        x, *others = self.layer.inputs(*size)
        return layer, (x.double(), *others)

    @torch.no_grad
    @pytest.mark.parametrize("mix", acmix.MIX_MODES)
    @pytest.mark.parametrize("kernel_conv", [3, 5])
    def test_computes_what_its_equations_say(self, mix, kernel_conv):
        layer, inputs = self.sample(mix=mix, kernel_conv=kernel_conv)
        for name, value in (("rate1", 0.3), ("rate2", 0.9)):
            if hasattr(layer, name):
                getattr(layer, name).fill_(value)
        alpha, beta = FACTORS[mix]
        expected = 0
        if alpha:
            expected = alpha * self.attention(layer, *inputs)
        if beta:
            fc, kernels = layer.fc.weight.flatten(1), layer.dep_conv.weight
            qkv = self.projections(layer, *inputs)
            stride = getattr(layer, "stride", 1)
            path = reference.convolution_path(qkv, fc, kernels, layer.fc.bias, stride=stride)
            expected = expected + beta * self.as_output(path, *inputs)
        torch.testing.assert_close(layer(*inputs), expected)

    @torch.no_grad
    @pytest.mark.parametrize("shift", ["tensor", "fixed", "learnable"])
    @pytest.mark.parametrize("size", [1, 3, 5])
    def test_shifts_start_as_shifts(self, shift, size):
        """Tap i, moved by (i // k, i % k) - k // 2, with zeros around."""
        layer = self.layer.make(shift=shift, kernel_conv=size, mix="convolution").double()
        maps = torch.randn(2, layer.fc.in_channels, layer.head_dim, 4, 7, dtype=torch.float64)
        taps = torch.einsum("ij,bjdyx->bidyx", layer.fc.weight[..., 0, 0], maps)
        if layer.fc.bias is not None:
            taps += layer.fc.bias.view(-1, 1, 1, 1)
        expected = torch.zeros_like(taps[:, 0])
        for i in range(size**2):
            dy, dx = i // size - size // 2, i % size - size // 2
            for y in range(max(0, -dy), min(4, 4 - dy)):
                for x in range(max(0, -dx), min(7, 7 - dx)):
                    expected[..., y, x] += taps[:, i, :, y + dy, x + dx]
        actual = layer.convolve(maps.flatten(1, 2)).unflatten(1, (layer.head_dim, layer.num_heads))
        torch.testing.assert_close(actual, expected.unsqueeze(2).expand_as(actual))

    def test_random_shifts_are_learned(self):
        weight = self.layer.make(shift="random").dep_conv.weight
        assert weight.requires_grad
        assert not torch.equal(weight, self.layer.make().dep_conv.weight)

    @pytest.mark.parametrize("shift", ["tensor", "fixed"])
    def test_fixed_shifts_have_no_parameters(self, shift):
        assert not [n for n in self.layer.make(shift=shift).state_dict() if "dep_conv" in n]

    def test_initialisation_by_layer_class_leaves_the_shifts_alone(self):
        layer = self.layer.make()
        before = layer.dep_conv.weight.clone()
        for module in layer.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                torch.nn.init.normal_(module.weight)
        assert torch.equal(layer.dep_conv.weight, before)

    def test_rates_start_at_one_half(self):
        layer = self.layer.make()
        assert layer.rate1.item() == layer.rate2.item() == 0.5

    @pytest.mark.parametrize("mix", acmix.MIX_MODES)
    @pytest.mark.parametrize("shift", acmix.SHIFT_MODES)
    def test_every_mode_trains(self, mix, shift):
        layer = self.layer.make(mix=mix, shift=shift)
        layer(*self.layer.inputs(6, 5)).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 9), (13, 7)])
    def test_equals_its_reference(self, size):
        layer, inputs = self.sample(size)
        results = []
        for backend in (None, "reference"):
            twin = copy.deepcopy(layer)
            twin.backend = backend
            out, (grad, *_) = gradients(lambda x, twin=twin: twin(x, *inputs[1:]), inputs[0])
            results.append([out, grad, *(p.grad for p in twin.parameters())])
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_error_budget(self, dtype):
        layer = randomised(self.layer.make()).eval()
        assert_module_within_error_budget(layer, self.layer.inputs(9, 7), dtype)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_trains_under_autocast(self, dtype):
        layer, inputs = self.layer.make(), self.layer.inputs(9, 7)
        with torch.autocast("cpu", dtype=dtype):
            out = layer(*inputs)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), layer(*inputs), rtol=0.05, atol=0.05)
        out.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())

    def test_takes_no_images(self):
        layer = self.layer.make().eval()
        out = layer(*self.layer.inputs(8, 6, batch=0))
        out.sum().backward()
        assert out.shape[0] == 0

    def test_copies_and_saves(self, tmp_path):
        layer, inputs = self.sample()
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        other = self.layer.make().double().eval()
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        assert torch.equal(other(*inputs), layer(*inputs))
        assert torch.equal(copy.deepcopy(layer)(*inputs), layer(*inputs))

    def test_prints_its_settings(self):
        assert "mix='one_one'" in repr(self.layer.make(mix="one_one"))

    def test_exports_without_our_operators(self):
        layer, inputs = self.layer.make().eval(), self.layer.inputs(9, 7)
        program = torch.export.export(layer, inputs)
        # Whoever runs the program need not have acmix.
        assert not [n for n in program.graph.nodes if "acmix" in str(n.target)]
        torch.testing.assert_close(program.module()(*inputs), layer(*inputs))

    @pytest.mark.slow
    def test_runs_as_onnx(self, tmp_path):
        pytest.importorskip("onnxscript", reason="onnxscript is missing: pip install acmix[onnx]")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        layer, inputs = self.layer.make().eval(), self.layer.inputs(9, 7)
        path = tmp_path / "layer.onnx"
        torch.onnx.export(layer, inputs, path, dynamo=True, verbose=False)
        session = runtime.InferenceSession(path)
        (out,) = session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})
        torch.testing.assert_close(torch.from_numpy(out), layer(*inputs).detach())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(kernel_conv=2), "kernel_conv=2: give an odd size"),
            (dict(mix="alpha_betta"), "mix='alpha_betta'.*did you mean 'alpha_beta'"),
            (dict(shift="fix"), "shift='fix': choose from .*did you mean 'fixed'"),
        ],
    )
    def test_wrong_options_are_named(self, options, message):
        with pytest.raises(acmix.InputError, match=message):
            self.layer.make(**options)

    def test_wrong_shapes_are_named(self):
        x, *others = self.layer.inputs(9, 7)
        channels = 1 if x.shape[1] == 6 else -1
        for wrong in (x[0], x[None], x.narrow(channels, 0, 5)):
            with pytest.raises(acmix.InputError, match=r"input shape=\(.*\): give \(B, "):
                self.layer.make()(wrong, *others)
