"""Swin: weights of every origin, and what they compute."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmpretrain.models import SwinTransformer
from mmpretrain.registry import MODELS

from acmix import CheckpointError, load_released
from acmix.mm import load_weights
from acmix_swin import ACmixSwinTransformer
from acmix_swin.convert import convert_state_dict
from support import GOLDEN, golden, golden_weights

TINY = dict(embed_dims=24, depths=[2, 2], num_heads=[2, 4])


def classifier(arch, num_classes, **backbone):
    stages = len(arch["depths"])
    channels = arch["embed_dims"] * 2 ** (stages - 1)
    backbone = dict(type="ACmixSwinTransformer", arch=arch, out_indices=(stages - 1,), **backbone)
    head = dict(type="LinearClsHead", num_classes=num_classes, in_channels=channels)
    neck = dict(type="GlobalAveragePooling")
    model = dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head)
    return MODELS.build(ConfigDict(model)).eval()


def test_released_checkpoint_gives_the_released_logits():
    io = golden("official_swin_mini_io.pt")
    model = classifier(TINY, 10)
    load_weights(model, load_released(GOLDEN / "official_swin_mini.pth"), "mini", complete=True)
    with torch.no_grad():
        features = model.extract_feat(io["input"])[-1]
        logits = model(io["input"])
    assert (features - io["features"]).abs().max() <= 1e-4
    assert (logits - io["logits"]).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_released_names_and_shapes_fill_the_model(name):
    weights = golden_weights("official_state_dict_layout.json", f"acmix_swin_{name}")
    conversion = convert_state_dict(weights)
    own = ACmixSwinTransformer(name).state_dict()
    converted = {k: v.shape for k, v in conversion.state_dict.items() if k.startswith("backbone.")}
    expected = {f"backbone.{k}": v.shape for k, v in own.items() if "position_index" not in k}
    assert converted == expected
    assert {k for k in conversion.state_dict if k not in converted} == {
        "head.fc.weight",
        "head.fc.bias",
    }


def test_plain_mmpretrain_swin_starts_the_same_model():
    arch = dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[2, 4, 4, 8])
    plain = SwinTransformer(arch)
    plain.eval()
    ours = ACmixSwinTransformer(arch).eval()
    load_weights(ours, plain.state_dict(), "plain", complete=True)
    x = torch.randn(2, 3, 224, 256)
    torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize("size", [(224, 224), (230, 261)])
def test_plain_torchvision_swin_starts_the_same_model(size):
    torchvision = pytest.importorskip("torchvision")
    plain = torchvision.models.swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=24,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 4, 8],
        window_size=[7, 7],
        num_classes=5,
    ).eval()
    ours = classifier(dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[2, 4, 4, 8]), 5)
    load_weights(ours, plain.state_dict(), "torchvision", complete=True)
    # torchvision drops the rows that a patch does not fill; MMPretrain pads them.
    x = torch.randn(2, 3, *(s // 4 * 4 for s in size))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)


def test_plain_weights_fill_a_model_without_convolution_path():
    plain = SwinTransformer(TINY, out_indices=(1,))
    plain.eval()
    ours = ACmixSwinTransformer(TINY, out_indices=(1,), mix="attention").eval()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    load_weights(ours, plain.state_dict(), "plain", complete=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), plain(x))


def test_pretrained_init_reads_a_released_file(tmp_path):
    source = ACmixSwinTransformer(TINY, out_indices=(1,))
    path = tmp_path / "own.pth"
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in source.state_dict().items()}}, path)
    init = dict(type="Pretrained", checkpoint=str(path))
    loaded = ACmixSwinTransformer(TINY, out_indices=(1,), init_cfg=init)
    loaded.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_another_window_size_resizes_the_bias_table():
    source = ACmixSwinTransformer(TINY, out_indices=(1,), window_size=7)
    target = ACmixSwinTransformer(TINY, out_indices=(1,), window_size=12)
    load_weights(target, source.state_dict(), "seven")
    table = target.stages[0].blocks[0].attn.w_msa.relative_position_bias_table
    assert table.shape == (23**2, 2)
    corner = source.stages[0].blocks[0].attn.w_msa.relative_position_bias_table[0]
    torch.testing.assert_close(table[0], corner, rtol=1e-3, atol=1e-3)


def test_weights_of_another_model_are_refused():
    with pytest.raises(CheckpointError, match="none of its 1 weights fits ACmixSwinTransformer"):
        load_weights(
            classifier(TINY, 10), {"layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)}, "resnet"
        )


def test_a_missing_weight_is_named():
    model = classifier(TINY, 10)
    weights = model.state_dict()
    del weights["backbone.patch_embed.norm.bias"]
    with pytest.raises(CheckpointError, match=r"patch_embed\.norm\.bias: absent in the file"):
        load_weights(model, weights, "file")


def test_other_classes_are_refused_in_a_test_and_start_anew_in_training(caplog):
    weights = classifier(TINY, 7).state_dict()
    with pytest.raises(CheckpointError, match=r"head.fc.weight: \(7, 48\) in the file, \(10, 48\)"):
        load_weights(classifier(TINY, 10), weights, "file", complete=True)
    model = classifier(TINY, 10)
    load_weights(model, weights, "file")
    name = "backbone.patch_embed.norm.bias"
    assert torch.equal(model.state_dict()[name], weights[name])
