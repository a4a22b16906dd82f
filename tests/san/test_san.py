"""SAN: original names and weights."""

import pytest
import torch

from acmix import InputError
from acmix.complexity import count_parameters
from acmix.mm import load_weights
from acmix_san import ACmixSAN
from acmix_san.convert import convert_state_dict
from support import golden_weights


@pytest.mark.parametrize(("depth", "thousands"), [(10, 11841), (15, 16181), (19, 20518)])
def test_without_convolution_path_it_is_san(depth, thousands):
    plain = ACmixSAN(depth, mix="attention")
    head = 2048 * 1000 + 1000
    assert round((count_parameters(plain) + head) / 1000) == thousands


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
def test_original_names_and_shapes_fill_the_plain_model(attention):
    weights = golden_weights("original_baseline_layout.json", f"san10_{attention}")
    conversion = convert_state_dict(weights)
    own = ACmixSAN(10, attention, mix="attention").state_dict()
    body = {n: w.shape for n, w in conversion.state_dict.items() if n.startswith("backbone.")}
    assert body == {f"backbone.{n}": w.shape for n, w in own.items()}
    assert set(conversion.state_dict) - set(body) == {"head.fc.weight", "head.fc.bias"}


def small(**options):
    torch.manual_seed(0)
    options = {"widths": (32, 32, 32, 64, 64), "stem_channels": 8, **options}
    return ACmixSAN(10, **options).eval()


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
def test_original_weights_start_the_same_model(attention):
    plain = small(attention=attention, mix="attention")
    ours = small(attention=attention)
    load_weights(ours, plain.state_dict(), "original", complete=True)
    x = torch.randn(2, 3, 97, 64)
    torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ACmixSAN(11), "depth=11: choose from 10, 15, 19"),
        (lambda: ACmixSAN(10, "pairwize"), "attention='pairwize': choose from patchwise, pairwise"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_transitions_and_norms_are_layers_of_their_stage():
    backbone = small()
    depth = {name: backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()}
    assert depth["conv_in.weight"] == depth["bn_in.weight"] == 0
    for stage, blocks in enumerate((2, 1, 2, 4, 1)):
        assert depth[f"conv{stage}.weight"] == depth[f"layer{stage}.0.bn1.weight"]
        assert depth[f"bn{stage}.weight"] == depth[f"layer{stage}.{blocks - 1}.bn1.weight"]
