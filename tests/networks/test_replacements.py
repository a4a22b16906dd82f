"""replace_convolutions in other people's networks: stems, timm's convolutions, saved reports."""

import json

import pytest
import torch
from torch import nn

import acmix
from acmix import ACmix2d, InputError, apply_replacements, replace_convolutions
from acmix.report import Report
from user_networks import NETWORKS, images


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed (pip install timm)")


def test_stems_are_left_out_unless_asked_for():
    report = replace_convolutions(NETWORKS["csp"]())
    kept = {row.names: row.kept for row in report}
    assert kept[("stem.0",)] == "a stem (stems=True takes it)"
    assert kept[("down.0",)] is None
    assert not [row for row in replace_convolutions(NETWORKS["csp"](), stems=True) if row.kept]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_b0", "regnety_002"])
def test_networks_of_grouped_convolutions_are_left_as_they_are(timm, name):
    model = timm.create_model(name)
    before = list(model.modules())
    with pytest.warns(UserWarning, match="nothing is replaced"):
        report = replace_convolutions(model)
    assert list(model.modules()) == before
    assert "nothing is replaced" in str(report)
    assert [
        row.kept for row in report if "groups" not in row.kept and "kernel" not in row.kept
    ] == ["a stem (stems=True takes it)"]


def test_same_padding_of_timm(timm):
    """TensorFlow's: symmetric with a stride of one, else by the size of the input."""
    model = nn.Sequential(
        timm.layers.Conv2dSame(8, 8, 3, bias=False), timm.layers.Conv2dSame(8, 8, 3, stride=2)
    )
    x = torch.randn(1, 8, 9, 7)
    expected = model[0](x).shape
    first, second = replace_convolutions(model, num_heads=2)
    assert first.kept is None
    assert model[0](x).shape == expected
    assert second.kept.startswith("a Conv2dSame of stride 2: where its windows lie")


def test_unstrided_same_padding_is_copied(timm):
    conv = timm.layers.Conv2dSame(5, 8, 3)
    model, x = nn.Sequential(conv), torch.randn(1, 5, 9, 7)
    (row,) = replace_convolutions(model, num_heads=2)
    assert row.error < 1e-6
    torch.testing.assert_close(model(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d"])
@pytest.mark.filterwarnings("ignore:nothing is replaced")
def test_weight_standardised_convolutions_are_kept_with_the_reason(timm, kind):
    conv = getattr(timm.layers, kind)(8, 8, 3, padding=1)
    (row,) = replace_convolutions(nn.Sequential(conv))
    assert row.kept == f"a {kind}: its weight is made anew each call"


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoint_of_a_replaced_network_loads_into_a_fresh_one(name, tmp_path):
    model, x = NETWORKS[name]().eval(), images()
    report = replace_convolutions(
        model, num_heads=2, kernel_att=3, mix="alpha_one", copy_weights=False
    )
    report.save(tmp_path / "replacements.json")
    torch.save(model.state_dict(), tmp_path / "model.pth")

    other = NETWORKS[name]().eval()
    again = apply_replacements(other, tmp_path / "replacements.json")
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert str(again) == str(report)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    # Not only through the file.
    third = NETWORKS[name]()
    apply_replacements(third, report)
    third.load_state_dict(model.state_dict())


def test_shared_layers_and_frozen_ones_stay_so(tmp_path):
    def build():
        conv = nn.Conv2d(8, 8, 3, padding=1).double().requires_grad_(False)
        return nn.ModuleDict(dict(one=conv, two=nn.Sequential(conv))).eval()

    replace_convolutions(build()).save(tmp_path / "report.json")
    model = build()
    apply_replacements(model, tmp_path / "report.json")
    assert isinstance(model["one"], ACmix2d)
    assert model["one"] is model["two"][0]
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float64, False)}
    assert not any(module.training for module in model.modules())


def csp_report():
    return replace_convolutions(NETWORKS["csp"](), copy_weights=False)


def without_a_layer():
    model = NETWORKS["csp"]()
    model.pair = nn.Identity()
    return model


def of_another_width():
    model = NETWORKS["csp"]()
    model.down[0] = nn.Conv2d(8, 32, 3, 2, padding=1)
    return model


def replaced_before():
    model = NETWORKS["csp"]()
    replace_convolutions(model)
    return model


def with_another_layer():
    model = NETWORKS["csp"]()
    model.down[0] = nn.Linear(3, 3)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (without_a_layer, r"pair\.1\.0: CSP has no such layer; give the network that the report"),
        (of_another_width, r"down\.0=3×3, 8 -> 32, stride 2: the report tells of a 3×3, 8 -> 16, "),
        (replaced_before, r"down\.0 is an ACmix2d already: give a network as it was before"),
        (with_another_layer, r"down\.0=Linear: the report tells of a 3×3, 8 -> 16, stride 2"),
        (lambda: nn.Conv2d(3, 3, 3), "model=Conv2d: give the module that holds it"),
    ],
)
def test_the_wrong_network_is_refused_whole(build, message):
    model = build()
    before = list(model.modules())
    with pytest.raises(InputError, match=message):
        apply_replacements(model, csp_report())
    assert list(model.modules()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=2), "version=2: this acmix reads 1"),
        (lambda content: content.update(format="other"), "give a file of report.save"),
        (lambda content: content["rows"][0].pop("names"), "entries of a row="),
    ],
)
def test_other_files_are_refused(change, message, tmp_path):
    path = tmp_path / "report.json"
    csp_report().save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        Report.load(path)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read as a saved report"):
        apply_replacements(NETWORKS["csp"](), tmp_path / "none.json")
    assert acmix.apply_replacements is apply_replacements
