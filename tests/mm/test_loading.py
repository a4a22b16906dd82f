"""``load_state_dict`` of torch and of MMEngine: what fits, what is refused, what is left alone."""

import copy
import pickle

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from acmix import CheckpointError, load_released
from families import FAMILIES
from support import GOLDEN
from weights_files import build, swin, write_microsoft_swin, write_released_swin, write_timm_swin


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def classifier(**head):
    model = swin()
    model["head"].update(head)
    return build(model)


def start(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_state_dict])
def test_weights_of_which_nothing_fits_are_an_error(family, load):
    backbone = family.build()
    with pytest.raises(CheckpointError, match=r"none of its 1 weights fits ACmix"):
        load(backbone, {"encoder.layer.0.weight": torch.zeros(3)}, strict=False)


def test_a_file_of_which_nothing_fits_is_an_error_and_named(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3), "head.bias": torch.zeros(5)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: none of its 2 weights fits ACmixSwin"):
        load_checkpoint(classifier(), str(tmp_path / "a.pth"))


def test_a_file_must_fill_a_model_that_was_not_initialised(tmp_path):
    weights = classifier().state_dict()
    del weights["backbone.patch_embed.norm.bias"]
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"patch_embed\.norm\.bias: absent in the file"):
        load_checkpoint(classifier(), str(tmp_path / "a.pth"))


def test_other_classes_start_anew_only_in_a_model_that_is_trained(tmp_path):
    file = write_timm_swin(tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight: \(5, 64\) in the file"):
        load_checkpoint(classifier(num_classes=7), str(file.path))
    trained = classifier(num_classes=7)
    trained.init_weights()
    before = start(trained)
    load_checkpoint(trained, str(file.path))
    after = trained.state_dict()
    assert torch.equal(after["head.fc.weight"], before["head.fc.weight"])
    name = "backbone.patch_embed.projection.weight"
    assert torch.equal(after[name], load_released(file.path)["patch_embed.proj.weight"])


@pytest.mark.parametrize("wrap", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_model_rename_too(wrap, tmp_path):
    file = write_microsoft_swin(tmp_path)
    model = wrap(build(file.model))
    model.load_state_dict(load_released(file.path))
    with torch.no_grad():
        torch.testing.assert_close(model(file.image), file.logits)


@pytest.mark.parametrize("name", ["backbone", "encoder"])
def test_a_model_within_another_renames_too(name, tmp_path):
    file = write_microsoft_swin(tmp_path)
    model, weights = build(file.model), load_released(file.path)
    if name == "encoder":  # a backbone that is not called so
        model = model.backbone
        weights = {n: w for n, w in weights.items() if not n.startswith("head.")}
    outer = nn.ModuleDict({name: model})
    outer.load_state_dict({f"{name}.{n}": w for n, w in weights.items()})
    taken = model.state_dict()
    key = next(n for n in taken if n.endswith("patch_embed.projection.weight"))
    assert torch.equal(taken[key], weights["patch_embed.proj.weight"])


def test_a_container_is_unpacked(tmp_path):
    file = write_released_swin(tmp_path)
    model = build(file.model)
    model.load_state_dict({"model": load_released(file.path), "epoch": 3})
    with torch.no_grad():
        assert (model(file.image) - file.logits).abs().max() <= 1e-5


def test_a_head_alone_is_left_as_it_is():
    model, head = classifier(), {"head.fc.bias": torch.ones(5)}
    before = start(model)
    model.load_state_dict(head, strict=False)
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {"head.fc.bias"}


def test_a_part_of_our_own_names_is_left_as_it_is(family):
    backbone = family.build()
    before, name = start(backbone), next(n for n in backbone.state_dict() if "weight" in n)
    part = {name: torch.ones_like(before[name])}
    incompatible = backbone.load_state_dict(part, strict=False)
    changed = {n for n, w in backbone.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {name}
    # torch itself makes up for the counters of batches.
    found = set(before) - set(incompatible.missing_keys)
    assert {n for n in found if not n.endswith("num_batches_tracked")} == {name}


def test_what_is_left_over_is_unexpected_to_torch():
    backbone = build(write_released_swin(None).model).backbone
    with pytest.raises(RuntimeError, match=r"head\.fc\.weight"):
        backbone.load_state_dict(load_released(GOLDEN / "official_swin_mini.pth"))


def test_own_weights_load_bit_by_bit(family):
    one, other = family.build(), family.build()
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(one.state_dict())
    for name, weight in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_deployed_model_loads_its_own_weights(family):
    one, other = family.build().eval(), family.build().eval()
    for parameter in one.parameters():
        nn.init.normal_(parameter, 0.02, 0.1)
    one.switch_to_deploy()
    other.switch_to_deploy()
    other.load_state_dict(one.state_dict())
    for name, weight in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name
