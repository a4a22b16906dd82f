"""Hugging Face: the hub's mixin and safetensors, offline."""

import pytest
import torch
from torch import nn

import acmix
from layers import LAYERS
from user_networks import NETWORKS, SHIFTS, build_network, images


@pytest.fixture
def safetensors():
    return pytest.importorskip(
        "safetensors.torch", reason="safetensors is not installed (pip install safetensors)"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_mixin_saves_and_loads(name, tmp_path, monkeypatch):
    hub = pytest.importorskip(
        "huggingface_hub", reason="huggingface_hub is not installed (pip install huggingface_hub)"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    class Network(nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, base: str, num_heads: int = 4):
            super().__init__()
            self.base = NETWORKS[base]()
            acmix.replace_convolutions(
                self.base, num_heads=num_heads, kernel_att=3, copy_weights=False
            )

        def forward(self, x):
            return self.base(x)

    network, x = Network(name, num_heads=2).eval(), images()
    network.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    twin = Network.from_pretrained(tmp_path).eval()
    assert [m.num_heads for m in twin.modules() if isinstance(m, acmix.ACmix2d)][0] == 2
    torch.testing.assert_close(twin(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", LAYERS)
def test_safetensors_of_a_layer(name, shift, safetensors, tmp_path):
    kind = LAYERS[name]
    layer, inputs = kind.make(shift=shift).eval(), kind.inputs(6, 7)
    safetensors.save_model(layer, tmp_path / "layer.safetensors")
    # As from_pretrained does: on no device first, then in memory that nothing has written to.
    with torch.device("meta"):
        twin = kind.build(shift=shift).eval()
    weights = safetensors.load_file(tmp_path / "layer.safetensors")
    twin.load_state_dict(weights, assign=True)
    torch.testing.assert_close(twin(*inputs), layer(*inputs), rtol=0, atol=0)


def test_safetensors_of_a_network(safetensors, tmp_path):
    network, x = build_network("csp"), images()
    safetensors.save_model(network, tmp_path / "network.safetensors")
    twin = build_network("csp")
    safetensors.load_model(twin, tmp_path / "network.safetensors")
    torch.testing.assert_close(twin(x), network(x), rtol=0, atol=0)
