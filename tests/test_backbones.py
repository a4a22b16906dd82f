"""The contract of every backbone, family by family."""

import re

import pytest
import torch
import yaml
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from acmix.complexity import count_multiply_adds, count_parameters
from acmix.modules import ACmixBase
from families import FAMILIES
from support import ROOT, assert_module_within_error_budget, scrambled


def deploy(backbone):
    """By the method that MMPretrain's tool calls."""
    backbone.switch_to_deploy()
    return backbone


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]


@pytest.mark.parametrize("size", [(200, 333), (97, 61), (64, 64), (33, 32)])
@pytest.mark.parametrize("batch", [1, 3])
def test_feature_maps_have_the_expected_sizes(family, size, batch):
    backbone = family.build(out_indices=family.every_stage).eval()
    maps = backbone(torch.randn(batch, 3, *size))
    expected = [
        (batch, c, *s) for c, s in zip(family.channels, family.map_sizes(*size), strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize("out_indices", [(3,), (1, 3), (0, 2)])
def test_out_indices_choose_the_maps(family, out_indices):
    x = torch.randn(1, 3, 64, 64)
    every = family.build(out_indices=family.every_stage).eval()
    some = family.build(out_indices=out_indices).eval()
    some.load_state_dict({k: v for k, v in every.state_dict().items() if k in some.state_dict()})
    for index, chosen in zip(out_indices, some(x), strict=True):
        torch.testing.assert_close(chosen, every(x)[index])


def test_every_parameter_gets_a_gradient(family):
    backbone = family.build(out_indices=family.every_stage)
    backbone.init_weights()
    backbone.train()
    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 96, 64))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_initialisation_leaves_shifts_and_rates_alone(family):
    classifier_init = [
        dict(type="TruncNormal", layer=["Linear", "Conv2d"], std=0.02, bias=0.0),
        dict(type="Kaiming", layer="Conv2d"),
        dict(type="Constant", val=1, layer="_BatchNorm"),
    ]
    for options in ({}, dict(init_cfg=classifier_init)):
        backbone = family.build(**options)
        backbone.init_weights()
        layers = [m for m in backbone.modules() if isinstance(m, ACmixBase)]
        assert len(layers) == (10 if family is FAMILIES["san"] else 8)
        for layer in layers:
            taps = torch.eye(9).view(1, 9, 3, 3).expand_as(layer.dep_conv.weight)
            assert torch.equal(layer.dep_conv.weight, taps)
            assert layer.rate1.item() == layer.rate2.item() == 0.5


def test_gradient_checkpointing_equals_plain(family):
    plain, saving = family.build(), family.build(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    outs, grads = [], []
    for backbone in (plain.eval(), saving.eval()):
        backbone.zero_grad()
        out = backbone(x)[0]
        out.square().mean().backward()
        outs.append(out.detach())
        grads.append([p.grad for p in backbone.parameters()])
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("frozen", [0, 2])
def test_frozen_stages_have_no_gradient(family, frozen):
    backbone = family.build(frozen_stages=frozen, out_indices=family.every_stage)
    backbone.train()
    free = [p for p in backbone.parameters() if p.requires_grad]
    assert 0 < len(free) < len(list(backbone.parameters()))
    sum(m.mean() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)
    layers = [m for m in backbone.modules() if isinstance(m, ACmixBase)]
    stopped = [layer for layer in layers if not layer.rate1.requires_grad]
    assert not any(layer.training for layer in stopped)
    # Stage 0 of a ResNet is its stem, which has no ACmix layer.
    assert stopped or frozen == 0


def test_all_stages_frozen_leave_nothing_to_train(family):
    # A ResNet counts its stem as stage 0.
    last = 4 if family is FAMILIES["resnet"] else len(family.channels) - 1
    backbone = family.build(frozen_stages=last).train()
    assert not [name for name, p in backbone.named_parameters() if p.requires_grad]


def test_stages_are_frozen_before_a_parallel_wrapper_looks(family):
    backbone = family.build(frozen_stages=1)
    before = {name for name, p in backbone.named_parameters() if p.requires_grad}
    backbone.train()
    assert before == {name for name, p in backbone.named_parameters() if p.requires_grad}


def test_a_classifiers_checkpoint_starts_a_backbone_of_maps(family, tmp_path, caplog):
    classifier = family.build()
    weights = {f"backbone.{name}": w for name, w in classifier.state_dict().items()}
    torch.save({"state_dict": weights | {"head.fc.weight": torch.zeros(3, 3)}}, tmp_path / "c.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"))
    backbone = family.build(out_indices=family.every_stage, init_cfg=pretrained)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    backbone.init_weights()
    logger.removeHandler(caplog.handler)
    assert "In the file, but not used: " in caplog.text
    assert "head.fc.weight" in caplog.text
    own = backbone.state_dict()
    for name, weight in classifier.state_dict().items():
        assert torch.equal(own[name], weight), name


@pytest.mark.parametrize("scope", ["mmpretrain", "mmdet", "mmseg", None])
def test_every_scope_finds_the_backbone(family, scope):
    name = type(family.build()).__name__
    with MODELS.switch_scope_and_registry(scope) as registry:
        assert registry.get(name) is type(family.build())


def test_drop_path_rate_acts_in_training_only(family):
    backbone = family.build(drop_path_rate=0.9)
    x = torch.randn(8, 3, 64, 64)
    torch.testing.assert_close(backbone.eval()(x), backbone.eval()(x))
    dropping = [m for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(m.drop_prob for m in dropping) == pytest.approx(0.9)


def test_norm_eval_stops_batch_statistics(family):
    backbone = family.build(norm_eval=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not m.training for m in norms)


def test_layer_wise_decay_reaches_every_block_once(family):
    backbone = family.build()
    named = {
        f"backbone.{n}": backbone.get_layer_depth(f"backbone.{n}", "backbone.")
        for n, _ in backbone.named_parameters()
    }
    head, count = backbone.get_layer_depth("head.fc.weight", "backbone.")
    assert head == count - 1
    assert {number for _, number in named.values()} == {count}
    depths = [depth for depth, _ in named.values()]
    blocks = [m for m in backbone.modules() if isinstance(m, ACmixBase)]
    # A stem, every block, and what follows them.
    assert count == len(blocks) + 2
    assert set(depths) | {count - 1} == set(range(count))
    # A block is one layer, whose number grows with its place.
    layers = {}
    for name, (depth, _) in named.items():
        if match := re.match(r".*?(layer|block|stages)\D*(\d+)\D+(\d+)\.", name):
            layers.setdefault((int(match[2]), int(match[3])), set()).add(depth)
    assert all(len(found) == 1 for found in layers.values())
    order = [min(layers[place]) for place in sorted(layers)]
    assert order == sorted(set(order)) == list(range(1, count - 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_error_budget(family, dtype):
    backbone = family.build().eval()
    assert_module_within_error_budget(backbone, (torch.randn(1, 3, 64, 64),), dtype)


def test_channels_last_equals_contiguous(family):
    backbone = family.build(out_indices=family.every_stage).eval()
    x = torch.randn(2, 3, 97, 61)
    expected = backbone(x)
    actual = backbone.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fuse", [deploy, fuse_conv_bn, lambda m: fuse_conv_bn(deploy(m))])
def test_folded_backbone_gives_the_same(family, fuse):
    backbone = scrambled(family.build(out_indices=family.every_stage), 0.02, 0.1)
    x = torch.randn(2, 3, 97, 61)
    with torch.no_grad():
        expected = backbone(x)
        for actual, true in zip(fuse(backbone)(x), expected, strict=True):
            assert (actual - true).abs().max() <= 1e-5 * true.abs().max()


@pytest.mark.parametrize("mix", ["attention", "convolution", "one_one"])
def test_mix_reaches_every_layer(family, mix):
    backbone = family.build(mix=mix)
    layers = [m for m in backbone.modules() if isinstance(m, ACmixBase)]
    assert {layer.mix for layer in layers} == {mix}
    assert backbone(torch.randn(1, 3, 64, 64))[0].isfinite().all()


def paper_models():
    found = []
    for name, family in FAMILIES.items():
        for model in yaml.safe_load((ROOT / name / "metafile.yml").read_text())["Models"]:
            # The smallest of each family is fast.
            marks = [pytest.mark.slow] * (model["Name"] != next(iter(family.full)))
            parameters = *family.full[model["Name"]], model
            found.append(pytest.param(*parameters, id=model["Name"], marks=marks))
    return found


@pytest.mark.parametrize(("build", "features", "model"), paper_models())
def test_sizes_are_those_of_the_metafile_and_near_the_papers(build, features, model):
    network = nn.Sequential(build(), _LastMap(), nn.Linear(features, 1000))
    parameters, operations = count_parameters(network), count_multiply_adds(network)
    assert parameters == model["Metadata"]["Parameters"]
    assert operations == model["Metadata"]["FLOPs"]
    if "Paper" not in model:
        return
    printed = model["Paper"]["FLOPs"].removesuffix("G")
    assert (
        abs(operations / 1e9 / float(printed) - 1) <= 0.03 or f"{operations / 1e9:.1f}" == printed
    )


class _LastMap(nn.Module):
    def forward(self, maps):
        last = maps[-1]
        return last if last.dim() == 2 else last.mean(dim=(-2, -1))
