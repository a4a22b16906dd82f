"""PVT: original weights, position embeddings, reduced maps, the class token."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmpretrain.registry import MODELS

from acmix import GlobalACmix, InputError, reference
from acmix.complexity import count_parameters
from acmix.mm import load_weights
from acmix_pvt import ACmixPVT
from acmix_pvt.convert import convert_state_dict
from support import golden, golden_weights

ARCH_KEYS = ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")


def classifier(config, **backbone):
    arch = {key: config[key] for key in ARCH_KEYS}
    backbone = dict(type="ACmixPVT", arch=arch, img_size=config["img_size"], **backbone)
    head = dict(
        type="LinearClsHead",
        num_classes=config["num_classes"],
        in_channels=config["embed_dims"][-1],
    )
    return MODELS.build(ConfigDict(type="ImageClassifier", backbone=backbone, head=head)).eval()


@pytest.mark.parametrize("mix", ["attention", "alpha_beta", "alpha_complement"])
def test_original_weights_give_the_original_logits(mix):
    original = golden("pvt_v1_mini.pt")
    model = classifier(original["config"], mix=mix)
    load_weights(model, original["state_dict"], "original", complete=True)
    for case in original["cases"]:
        with torch.no_grad():
            assert (model(case["input"]) - case["logits"]).abs().max() <= 1e-4


@pytest.mark.parametrize(("arch", "thousands"), [("tiny", 13229), ("small", 24486)])
def test_without_convolution_path_it_is_pvt(arch, thousands):
    plain = ACmixPVT(arch, mix="attention")
    head = 512 * 1000 + 1000
    assert round((count_parameters(plain) + head) / 1000) == thousands


@pytest.mark.parametrize("arch", ["tiny", "small"])
def test_original_names_and_shapes_fill_the_plain_model(arch):
    weights = golden_weights("original_baseline_layout.json", f"pvt_{arch}")
    conversion = convert_state_dict(weights)
    own = ACmixPVT(arch, mix="attention").state_dict()
    body = {n: w.shape for n, w in conversion.state_dict.items() if n.startswith("backbone.")}
    assert body == {f"backbone.{n}": w.shape for n, w in own.items()}
    assert set(conversion.state_dict) - set(body) == {"head.fc.weight", "head.fc.bias"}


def layer(**options):
    torch.manual_seed(0)
    return GlobalACmix(8, 2, **options)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("sr_ratio", [1, 2, 3])
def test_layer_computes_what_its_equations_say(sr_ratio, extra):
    acmix, size = layer(sr_ratio=sr_ratio).double(), (6, 9)
    x = torch.randn(2, extra + 54, 8, dtype=torch.float64)
    pixels = x[:, extra:].transpose(1, 2).unflatten(2, size)
    if sr_ratio > 1:
        small = acmix.sr(pixels)
        source = acmix.norm(torch.cat([x[:, :extra], small.flatten(2).transpose(1, 2)], dim=1))
    else:
        small, source = pixels, x
    q, kv = acmix.q(x), acmix.kv(source)
    heads = [t.unflatten(2, (2, 4)).transpose(1, 2) for t in (q, *kv.chunk(2, dim=2))]
    weights = (heads[0] @ heads[1].transpose(-1, -2) / 2).softmax(dim=-1)
    attention = acmix.proj((weights @ heads[2]).transpose(1, 2).flatten(2))

    maps = [t[:, extra:].transpose(1, 2) for t in (q, kv)]
    kv_map = maps[1].unflatten(2, small.shape[2:])
    kv_map = torch.nn.functional.interpolate(kv_map, size=size, mode="bilinear")
    qkv = torch.cat([maps[0].unflatten(2, size), kv_map], dim=1)
    fc, kernels = acmix.fc, acmix.dep_conv.weight
    conv = reference.convolution_path(qkv, fc.weight.flatten(1), kernels, fc.bias)
    expected = acmix.rate1 * attention
    expected[:, extra:] += acmix.rate2 * conv.flatten(2).transpose(1, 2)
    torch.testing.assert_close(acmix(x, size), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 5)])
def test_layer_takes_any_size(size):
    x = torch.randn(2, 1 + size[0] * size[1], 8)
    assert layer(sr_ratio=4)(x, size).shape == x.shape


def test_layer_names_a_wrong_shape():
    with pytest.raises(InputError, match=r"input shape=\(2, 11, 8\): give \(B, 3 \* 4, 8\)"):
        layer()(torch.zeros(2, 11, 8), (3, 4))


def test_position_embeddings_of_other_images_are_resized_on_loading():
    small = dict(
        embed_dims=[8, 16], depths=[1, 1], num_heads=[1, 2], mlp_ratios=[2, 2], sr_ratios=[2, 1]
    )
    source = ACmixPVT(small, img_size=64)
    source.init_weights()
    target = ACmixPVT(small, img_size=96)
    load_weights(target, source.state_dict(), "other size", complete=True)
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))


def test_a_backbone_without_class_token_takes_weights_that_have_one():
    small = dict(
        embed_dims=[8, 16], depths=[1, 1], num_heads=[1, 2], mlp_ratios=[2, 2], sr_ratios=[2, 1]
    )
    source = ACmixPVT(small, img_size=64)
    target = ACmixPVT(
        small, img_size=64, with_cls_token=False, out_type="featmap", out_indices=(0, 1)
    )
    load_weights(target, source.state_dict(), "with a class token")
    assert torch.equal(target.pos_embed2, source.pos_embed2[:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(arch="tinny"), "arch='tinny': choose from tiny, small; did you mean 'tiny'?"),
        (dict(arch=dict(depths=[1])), r"arch=\['depths'\]: give a dict of"),
        (dict(out_type="map"), "out_type='map': choose from cls_token, featmap"),
        (dict(with_cls_token=False), "out_type='cls_token' needs it"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        ACmixPVT(**options)
