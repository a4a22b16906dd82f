"""The export command: files that compute the same, or none."""

import json

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from acmix.mm import exporting
from acmix.mm.export import export
from support import ROOT

CONFIG = "configs/acmix-swin-nano_1xb64_digits-32px.py"
SMALL = ["--cfg-options", "model.backbone.arch.depths=[1,1]"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with class names, of a model that was never trained."""
    cfg = Config.fromfile(ROOT / "swin" / CONFIG)
    cfg.model.backbone.arch.depths = [1, 1]
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    meta = {"dataset_meta": {"classes": list("0123456789")}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return path


def run(checkpoint, out, *flags):
    export(ROOT / "swin", [CONFIG, str(checkpoint), str(out), *flags, *SMALL])


def test_a_trace_runs_and_says_what_it_is(checkpoint, tmp_path, capsys):
    out = tmp_path / "model.pt"
    run(checkpoint, out, "--dynamic")
    text = capsys.readouterr().out
    assert text.count("largest difference") == 7
    assert "images 3×3×97×61" in text
    extra = {exporting.METADATA: ""}
    trace = torch.jit.load(str(out), _extra_files=extra)
    assert trace(torch.zeros(2, 3, 40, 56))[0].shape == (2, 10)
    said = json.loads(extra[exporting.METADATA])
    assert said["classes"] == list("0123456789")
    assert (said["mean"], said["std"], said["size"]) == ([78.0] * 3, [96.0] * 3, [32, 32])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--dynamic"], ["--half"]], ids=str)
def test_an_onnx_file_runs_and_says_what_it_is(checkpoint, flags, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "model.onnx"
    run(checkpoint, out, *flags)
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (images,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (images.name, scores.name) == ("images", "scores")
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list("0123456789")
    assert json.loads(said["dynamic"]) == (flags == ["--dynamic"])
    assert images.type == ("tensor(float16)" if flags == ["--half"] else "tensor(float)")


@pytest.mark.slow
def test_a_program_has_the_size_that_is_asked_for(checkpoint, tmp_path):
    out = tmp_path / "model.pt2"
    run(checkpoint, out, "--size", "40", "48", "--batch", "3")
    program = torch.export.load(out).module()
    assert program(torch.zeros(3, 3, 40, 48))[0].shape == (3, 10)


def test_a_file_that_computes_something_else_is_not_kept(checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "model.pt"
    out.write_text("the old one")
    load = exporting.Trace.load

    def wrong(self, path):
        right = load(self, path)
        return lambda x: tuple(y + 1e-3 for y in right(x))

    monkeypatch.setattr(exporting.Trace, "load", wrong)
    with pytest.raises(SystemExit):
        run(checkpoint, out)
    assert "another result than the model" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("model.txt", [], "give a name that ends in .onnx, .pt2, .pt"),
        ("nowhere/model.onnx", [], "there is no folder"),
        ("model.pt", ["--size", "0"], "--size 0: give height and width"),
        ("model.pt", ["--size", "1", "2", "3"], "--size 1 2 3: give height and width"),
        ("model.pt", ["--batch", "0"], "--batch 0: give a positive number"),
    ],
)
def test_bad_input_is_named(checkpoint, out, flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, tmp_path / out, *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint_and_another_models_are_named(tmp_path, capsys):
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, other)
    for path, message in ((tmp_path / "none.pth", "none.pth"), (other, "none of its 1 weights")):
        with pytest.raises(SystemExit):
            run(path, tmp_path / "model.pt")
        assert message in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()
