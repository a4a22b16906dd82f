"""``python -m acmix.convert``: clean files of every origin, and short errors."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from acmix import load_released
from acmix.checkpoint import read_checkpoint
from acmix.convert import main
from acmix.digests import damaged_tensors
from support import GOLDEN
from weights_files import DETECTOR, PLAIN, WRITERS, build

RELEASED = GOLDEN / "official_swin_mini.pth"


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


@pytest.mark.parametrize("writer", WRITERS)
def test_a_clean_file_gives_the_same_logits(writer, tmp_path, capsys):
    file, out = WRITERS[writer](tmp_path), tmp_path / "out.pth"
    main([str(file.path), str(out)])
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"meta", "state_dict", "digests"}
    assert not damaged_tensors(content)
    known = ("backbone.", "head.fc.", "bbox_head.")
    assert all(name.startswith(known) for name in content["state_dict"])
    assert ("can start a training but not be tested" in capsys.readouterr().out) == (
        writer in PLAIN
    )
    if writer not in (*PLAIN, DETECTOR):
        model = build(file.model)
        model.load_state_dict(content["state_dict"])
        with torch.no_grad():
            error = (model(file.image) - file.logits).abs().max()
        assert error <= 1e-5 * max(1, file.logits.abs().max())


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
def test_a_clean_file_converts_to_itself_with_its_classes(ending, tmp_path):
    classes = ["cat", "dog", "größe"]
    weights = load_released(RELEASED)
    content = {"meta": {"dataset_meta": {"classes": classes}}, "state_dict": weights}
    torch.save(content, tmp_path / "in.pth")
    one, two = tmp_path / f"one{ending}", tmp_path / f"two{ending}"
    main([str(tmp_path / "in.pth"), str(one)])
    main([str(one), str(two), "--arch", "swin"])
    read = read_checkpoint(two)
    assert read["meta"]["dataset_meta"]["classes"] == classes
    for name, weight in load_released(one).items():
        assert torch.equal(read["state_dict"][name], weight), name


def message(*arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1
    return text


def test_bad_input_is_one_line(tmp_path, capsys):
    out = tmp_path / "out.pth"
    assert "absent.pth does not exist" in message(tmp_path / "absent.pth", out, capsys=capsys)
    for arguments in ([tmp_path / "out.bin"], [out, "--format", "safetensors"]):
        assert "give a name that ends in" in message(RELEASED, *arguments, capsys=capsys)
    assert "its folder does not exist" in message(RELEASED, tmp_path / "a" / "b.pth", capsys=capsys)
    torch.save({"encoder.weight": torch.ones(1)}, tmp_path / "other.pth")
    text = message(tmp_path / "other.pth", out, capsys=capsys)
    assert "of no known weights of resnet, san, pvt, swin (such as encoder.weight); give" in text
    assert "of no known weights of pvt" in message(RELEASED, out, "--arch", "pvt", capsys=capsys)
    assert not out.exists()


def test_a_file_is_replaced_only_by_force(tmp_path, capsys):
    out = tmp_path / "out.pth"
    out.write_text("mine")
    assert "is there already; give another name, or --force" in message(
        RELEASED, out, capsys=capsys
    )
    assert out.read_text() == "mine"
    main([str(RELEASED), str(out), "--force"])
    assert load_released(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_can_not_be_written_leaves_nothing(ending, tmp_path, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    out = tmp_path / f"out{ending}"
    monkeypatch.setattr(os, "fsync", refuse)
    text = message(RELEASED, out, capsys=capsys)
    assert f"{out}: can't be written (No space left on device)" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written(tmp_path, capsys):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "can't be written (Permission denied)" in message(
        RELEASED, Path(folder, "out.pth"), capsys=capsys
    )
