"""``python -m acmix_swin`` and its like, and the models in MMPretrain's list."""

import mmpretrain
import pytest
import yaml

import acmix_pvt
import acmix_resnet
import acmix_san
import acmix_swin
from acmix import InputError
from acmix.commands import COMMANDS, main
from acmix.mm.projects import project_folder
from support import ROOT

PACKAGES = (acmix_pvt, acmix_resnet, acmix_san, acmix_swin)
DIGITS = "acmix-swin-nano_1xb64_digits-32px"


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main("acmix_swin", arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_commands_are_named_with_a_remedy(capsys):
    text = refusal(capsys, "trian")
    assert text == "error: python -m acmix_swin has no command 'trian'; did you mean 'train'?"
    assert refusal(capsys, "zzz").endswith(f"'zzz'; there are {', '.join(COMMANDS)}")
    assert "leave the arguments out" in refusal(capsys, "configs", "all")
    text = refusal(capsys, "train", "acmix-swin-nano_digits")
    assert text.endswith(f"acmix-swin-nano_digits not found; did you mean '{DIGITS}.py'?")
    # A name is looked up among our configs, a path is what the user says.
    assert "not found" in refusal(capsys, "train", f"elsewhere/{DIGITS}.py")
    assert "nowhere.pth" in refusal(capsys, "test", DIGITS, "nowhere.pth")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_project_has_its_configs_and_help(package, capsys):
    main(package.__name__, ["configs"])
    names = capsys.readouterr().out.splitlines()
    assert any(name.endswith("digits-32px.py") for name in names)
    main(package.__name__, [])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_a_wheels_folder_is_used_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "acmix_test" / ".mim").mkdir(parents=True)
    (tmp_path / "acmix_test" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert project_folder("acmix_test") == tmp_path / "acmix_test" / ".mim"
    assert project_folder("acmix_swin") == ROOT / "swin"


@pytest.mark.slow
def test_mmpretrain_knows_the_models():
    entries = [
        entry["Name"].lower()
        for project in ("pvt", "resnet", "san", "swin")
        for entry in yaml.safe_load((ROOT / project / "metafile.yml").read_text())["Models"]
    ]
    assert mmpretrain.list_models("*acmix*") == sorted(entries)
    assert mmpretrain.get_model("resnet-acmix-26").backbone.depth == 26
    with pytest.raises(InputError, match=r"pretrained=True: it has not been trained.*<file>"):
        mmpretrain.get_model("swin-acmix-t", pretrained=True)
