"""PVT: original weights, position embeddings, the class token."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmpretrain.registry import MODELS

from acmix import InputError
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


def test_embeddings_are_layers_of_their_stage():
    backbone = ACmixPVT()
    depth = {name: backbone.get_layer_depth(name)[0] for name, _ in backbone.named_parameters()}
    assert depth["pos_embed1"] == depth["patch_embed1.proj.weight"] == 0
    for name in ("pos_embed2", "patch_embed2.norm.bias"):
        assert depth[name] == depth["block2.0.norm1.weight"] == 3
    assert depth["cls_token"] == depth["block4.0.norm1.weight"]
    assert depth["norm.weight"] == 9
