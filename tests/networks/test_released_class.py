"""``acmix.ACmix`` in place of the authors' class: arguments, weights, pickles of copies."""

import copy
import io
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from acmix import ACmix, ACmix2d, InputError, deploy
from released import BACKENDS, assert_reproduces
from support import golden

CASES = ["acmix2d_s1", "acmix2d_s2", "acmix2d_k5h2"]


def of_case(case, **options):
    names = ("in_channels", "out_channels", "kernel_att", "head", "kernel_conv", "stride")
    return ACmix(*(case["config"][name] for name in names), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_authors_arguments_and_tensors(name, backend):
    case = golden("acmix_conv2d.pt")[name]
    layer = of_case(case, backend=backend)
    layer.load_state_dict(case["state_dict"])
    assert_reproduces(layer, case)


def test_names_that_others_read():
    layer = ACmix(8, 12, 5, 3, 3, 2, 2)
    assert (layer.in_planes, layer.out_planes, layer.head, layer.head_dim) == (8, 12, 3, 4)
    assert (layer.kernel_att, layer.kernel_conv, layer.stride, layer.dilation) == (5, 3, 2, 2)
    assert (ACmix(8, 8).kernel_att, ACmix(8, 8).head) == (7, 4)
    assert isinstance(layer, ACmix2d)


class Copy(nn.Module):
    """What a copied class holds; only its convolution path is computed here."""

    def __init__(self, in_planes, out_planes, kernel_att=7, head=4, kernel_conv=3, stride=1):
        super().__init__()
        self.in_planes, self.out_planes, self.head = in_planes, out_planes, head
        self.kernel_att, self.kernel_conv, self.stride = kernel_att, kernel_conv, stride
        self.dilation = 1
        self.rate1, self.rate2 = (nn.Parameter(torch.rand(1)) for _ in range(2))
        self.head_dim = out_planes // head
        for name in ("conv1", "conv2", "conv3"):
            setattr(self, name, nn.Conv2d(in_planes, out_planes, kernel_size=1))
        self.conv_p = nn.Conv2d(2, self.head_dim, kernel_size=1)
        self.pad_att, self.softmax = nn.ReflectionPad2d(3), nn.Softmax(dim=1)
        self.fc = nn.Conv2d(3 * head, kernel_conv**2, kernel_size=1, bias=False)
        self.dep_conv = nn.Conv2d(
            kernel_conv**2 * self.head_dim,
            out_planes,
            kernel_size=kernel_conv,
            bias=True,
            groups=self.head_dim,
            padding=1,
            stride=stride,
        )

    def convolution_path(self, x):
        maps = torch.cat([conv(x) for conv in (self.conv1, self.conv2, self.conv3)], dim=1)
        taps = self.fc(maps.unflatten(1, (-1, self.head_dim)).flatten(3))
        channels = taps.transpose(1, 2).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.rate2 * self.dep_conv(channels)


@pytest.mark.parametrize("stride", [1, 2])
def test_bias_of_a_copy_is_exact(stride):
    copied = Copy(8, 8, stride=stride).double()
    nn.init.normal_(copied.dep_conv.bias)
    layer = ACmix(8, 8, stride=stride).double()
    layer.load_state_dict(copied.state_dict())
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    attention = copy.deepcopy(layer)
    attention.load_state_dict(
        {**copied.state_dict(), "rate2": torch.zeros(1), "dep_conv.bias": torch.zeros(8)}
    )
    expected = copied.convolution_path(x) + attention(x)
    torch.testing.assert_close(layer(x), expected)
    assert layer.state_dict().keys() == copied.state_dict().keys()
    layer(x).sum().backward()
    assert layer.dep_conv.bias.grad.any()
    # Both ways: into a network of our own, and back from weights without one.
    twin = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    fresh = ACmix(8, 8, stride=stride).double()
    twin.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(twin(x), fresh(x), rtol=0, atol=0)


def test_bias_of_zeros_is_dropped():
    copied = Copy(8, 8)
    nn.init.zeros_(copied.dep_conv.bias)
    model = nn.Sequential(ACmix(8, 8))
    model.load_state_dict({f"0.{n}": w for n, w in copied.state_dict().items()})
    assert "0.dep_conv.bias" not in model.state_dict()


def test_other_weights_are_refused():
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ACmix(8, 8).load_state_dict({**Copy(8, 8).state_dict(), "dep_conv.scale": torch.ones(1)})
    with pytest.raises(InputError, match="kernel_att=6"):
        ACmix(8, 8, 6)


@pytest.mark.parametrize("bias", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pickled_model_of_a_copy_opens_with_this_class(bias, dtype, monkeypatch):
    """As YOLO checkpoints are: whole models, often in half precision."""
    module = types.ModuleType("common_of_a_fork")
    monkeypatch.setitem(sys.modules, "common_of_a_fork", module)
    names = dict(__module__=module.__name__, __qualname__="ACmix")
    module.ACmix = type("ACmix", (Copy,), names)
    copied = module.ACmix(8, 8, kernel_att=5).to(dtype).eval()
    nn.init.constant_(copied.dep_conv.bias, bias)
    file = io.BytesIO()
    torch.save(nn.Sequential(copied), file)
    module.ACmix = ACmix
    file.seek(0)
    (layer,) = torch.load(file, weights_only=False)
    assert type(layer) is ACmix
    assert (layer.kernel_att, layer.training, layer.fc.weight.dtype) == (5, False, dtype)
    assert ("dep_conv.bias" in layer.state_dict()) == bool(bias)
    expected = ACmix(8, 8, 5).to(dtype).eval()
    expected.load_state_dict(copied.state_dict())
    x = torch.randn(1, 8, 9, 7, dtype=dtype)
    torch.testing.assert_close(layer(x), expected(x), rtol=0, atol=0)


def test_bias_of_a_copy_is_deployed():
    copied = Copy(8, 8)
    nn.init.normal_(copied.dep_conv.bias)
    layer, norm = ACmix(8, 8), nn.BatchNorm2d(8)
    layer.load_state_dict(copied.state_dict())
    norm.running_mean.normal_()
    nn.init.uniform_(norm.weight)
    model, x = nn.Sequential(layer, norm).eval(), torch.randn(2, 8, 9, 7)
    expected = model(x)
    torch.testing.assert_close(deploy(model)(x), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model[1], nn.Identity)
