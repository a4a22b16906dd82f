"""Swin: weights of every origin, and what they compute."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmpretrain.models import SwinTransformer
from mmpretrain.registry import MODELS

from acmix import CheckpointError, load_released
from acmix.mm import load_weights
from acmix_swin import ACmixSwinTransformer
from acmix_swin.backbone import Tiles
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


@pytest.mark.parametrize("window", [4, 12])
def test_original_files_of_other_windows_and_images_have_their_tables_resized(window):
    weights = load_released(GOLDEN / "official_swin_mini.pth")
    model = classifier(TINY, 10, window_size=window, img_size=window * 8)
    load_weights(model, weights, "seven", complete=True)
    for stage, heads in enumerate((2, 4)):
        given = weights[f"layers.{stage}.blocks.1.attn.relative_position_bias_table"]
        # As Swin's own code does it when it goes from 224 to 384 pixels.
        maps = given.permute(1, 0).view(1, heads, 13, 13)
        side = 2 * window - 1
        resized = F.interpolate(maps, size=(side, side), mode="bicubic")
        expected = resized.view(heads, side**2).permute(1, 0)
        layer = model.backbone.stages[stage].blocks[1].attn.w_msa
        torch.testing.assert_close(layer.relative_position_bias_table, expected)
    assert model(torch.randn(1, 3, window * 8, window * 8)).isfinite().all()


def test_a_head_of_imagenet_22k_is_dropped_with_a_note(caplog):
    weights = load_released(GOLDEN / "official_swin_mini.pth")
    weights |= {"head.weight": torch.zeros(21841, 48), "head.bias": torch.zeros(21841)}
    model, logger = classifier(TINY, 10), MMLogger.get_current_instance()
    before = model.head.fc.weight.clone()
    logger.addHandler(caplog.handler)
    load_weights(model, weights, "22k")
    logger.removeHandler(caplog.handler)
    assert "starting anew (the file's is of ImageNet-22k): head.fc.weight" in caplog.text
    assert torch.equal(model.head.fc.weight, before)
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight: \(21841, 48\) in the file"):
        load_weights(classifier(TINY, 10), weights, "22k", complete=True)


def test_timms_feature_extractor_starts_all_but_the_norms():
    timm = pytest.importorskip("timm")
    arch = dict(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(2, 4, 4, 8))
    plain = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **arch)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, 0.05, 0.2)
    arch = dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[2, 4, 4, 8])
    ours = ACmixSwinTransformer(arch, out_indices=(3,), norm_cfg=None).eval()
    load_weights(ours, plain.state_dict(), "timm", complete=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = plain.eval()(x)[-1].permute(0, 3, 1, 2)
        assert (ours(x)[0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    ours = ACmixSwinTransformer(arch)
    load_weights(ours, plain.state_dict(), "timm")
    with pytest.raises(CheckpointError, match="can start a training but not be tested"):
        load_weights(ours, plain.state_dict(), "timm", complete=True)


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


@pytest.mark.parametrize("side", [2, 3])
def test_tiles_are_torchs_unfold(side):
    unfold = torch.nn.Unfold(side, stride=side)
    tiles = Tiles.replacing(torch.nn.Unfold((side,) * 2, (1, 1), (0, 0), (side,) * 2))
    assert type(tiles) is Tiles
    x = torch.randn(2, 3, 2 * side, 3 * side, requires_grad=True)
    for maps in (x, x.to(memory_format=torch.channels_last)):
        out, expected = tiles(maps), unfold(maps)
        assert torch.equal(out, expected)
        grad = torch.randn_like(out)
        theirs = torch.autograd.grad(expected, x, grad)
        assert torch.equal(*torch.autograd.grad(out, x, grad), *theirs)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "stride"),
    [(2, 1, 0, 1), (2, 2, 0, 2), (2, 1, 1, 2), ((2, 3), 1, 0, (2, 3))],
)
def test_what_does_not_tile_stays_as_it_is(kernel, dilation, padding, stride):
    pairs = [n if isinstance(n, tuple) else (n, n) for n in (kernel, dilation, padding, stride)]
    unfold = torch.nn.Unfold(*pairs)
    assert Tiles.replacing(unfold) is unfold


def test_patches_are_merged_by_tiles():
    backbone = ACmixSwinTransformer(TINY, out_indices=(1,))
    samplers = [stage.downsample.sampler for stage in backbone.stages if stage.downsample]
    assert samplers
    assert all(type(sampler) is Tiles for sampler in samplers)
