"""The export command: files that compute the same, or none."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from acmix.mm import formats
from acmix.mm.export import export
from exporting import in_openvino
from support import ROOT, scrambled

CONFIGS = {
    "swin": "configs/acmix-swin-nano_1xb64_digits-32px.py",
    "pvt": "configs/acmix-pvt-nano_1xb64_digits-32px.py",
}
SMALL = ["--cfg-options", "model.backbone.arch.depths=[1,1]"]
CLASSES = [f"digit {i}" for i in range(10)]


def small_model(project):
    """A model of two blocks, none of whose parameters is at its start."""
    cfg = Config.fromfile(ROOT / project / CONFIGS[project])
    cfg.model.backbone.arch.depths = [1, 1]
    cfg.model.data_preprocessor = cfg.data_preprocessor
    torch.manual_seed(0)
    return scrambled(MODELS.build(cfg.model), 0.0, 0.2)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints with class names, by project."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for project in CONFIGS:
        meta = {"dataset_meta": {"classes": CLASSES}}
        content = {"state_dict": small_model(project).state_dict(), "meta": meta}
        torch.save(content, folder / f"{project}.pth")
    return folder


def run(checkpoints, out, *flags, project="swin"):
    checkpoint = str(checkpoints / f"{project}.pth")
    return export(ROOT / project, [CONFIGS[project], checkpoint, str(out), *flags, *SMALL])


def test_a_trace_runs_and_says_what_it_is(checkpoints, tmp_path, capsys):
    out = tmp_path / "model.pt"
    run(checkpoints, out, "--dynamic")
    text = capsys.readouterr().out
    assert text.count("largest difference") == 7
    assert "images 3×3×97×61" in text
    extra = {formats.METADATA: ""}
    trace = torch.jit.load(str(out), _extra_files=extra)
    assert trace(torch.zeros(2, 3, 40, 56))[0].shape == (2, 10)
    said = json.loads(extra[formats.METADATA])
    assert said["classes"] == CLASSES
    assert (said["mean"], said["std"], said["size"]) == ([78.0] * 3, [96.0] * 3, [32, 32])


@pytest.fixture(scope="module")
def onnx_file(checkpoints, tmp_path_factory):
    """Writes the ONNX file of a project that serves any size, once; its path."""
    for package in formats.Onnx.packages:
        pytest.importorskip(package, reason=f"{package} is missing: pip install acmix[onnx]")
    folder = tmp_path_factory.mktemp("onnx")

    @functools.cache
    def write(project):
        run(checkpoints, folder / f"{project}.onnx", "--dynamic", project=project)
        return folder / f"{project}.onnx"

    return write


@pytest.mark.slow
def test_the_page_shows_how_an_onnx_file_is_used(onnx_file, tmp_path):
    page = (ROOT / "docs" / "your-network" / "export.md").read_text()
    (snippet,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "model.onnx").symlink_to(onnx_file("swin"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    said = subprocess.check_output([sys.executable, "-c", snippet], cwd=tmp_path, text=True)
    model = small_model("swin")
    images = model.data_preprocessor({"inputs": [torch.from_numpy(pixels).permute(2, 0, 1)]})
    with torch.no_grad():
        scores = model(images["inputs"], mode="tensor")[0]
    name, number, score = said.split()
    assert f"{name} {number}" == CLASSES[scores.argmax()]
    assert float(score) == pytest.approx(float(scores.max()), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("project", ["swin", pytest.param("pvt", marks=pytest.mark.thorough)])
def test_openvino_runs_the_file_at_any_size(project, onnx_file):
    serve, model = in_openvino(onnx_file(project)), small_model(project)
    for shape in ((1, 3, 32, 32), (3, 3, 97, 61)):
        x = 0.1 * torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(serve(x)[0], model(x, mode="tensor"), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_in_half_precision(checkpoints, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "model.onnx"
    run(checkpoints, out, "--half")
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (images,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, scores.name) == ("images", "tensor(float16)", "scores")
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["dynamic"]) is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "flags", "shape"),
    [
        (".pt2", ["--dynamic", "--size", "96"], (5, 3, 111, 203)),
        (".aot.pt2", ["--size", "40", "48", "--batch", "3"], (3, 3, 40, 48)),
    ],
)
def test_a_program_serves_what_is_asked_for(ending, flags, shape, checkpoints, tmp_path):
    out = tmp_path / f"model{ending}"
    run(checkpoints, out, *flags)
    if ending == ".pt2":
        program = torch.export.load(out).module()
    else:
        program = torch._inductor.aoti_load_package(str(out))
        assert json.loads(program.get_metadata()[formats.METADATA])["classes"] == CLASSES
    x = torch.randn(shape)
    with torch.no_grad():
        expected = small_model("swin")(x, mode="tensor")
        torch.testing.assert_close(program(x)[0], expected, rtol=0, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_kept(
    checkpoints, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "model.pt"
    out.write_text("the old one")
    load = formats.Trace.load

    def wrong(self, path):
        right = load(self, path)
        return lambda x: tuple(y + 2e-4 * y.abs().max() for y in right(x))

    monkeypatch.setattr(formats.Trace, "load", wrong)
    with pytest.raises(SystemExit):
        run(checkpoints, out)
    assert "another result than the model" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]


@pytest.mark.slow
def test_a_size_that_a_program_does_not_serve_is_named(checkpoints, tmp_path, capsys):
    # Windows of four pixels and maps of a quarter and an eighth of the image: at 32, one window.
    with pytest.raises(SystemExit):
        run(checkpoints, tmp_path / "model.pt2", "--dynamic")
    message = capsys.readouterr().err
    assert "can't be served" in message
    assert "leave --dynamic out, or give a larger --size, or write .onnx or .pt" in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_half_precision_are_named(checkpoints, tmp_path, capsys):
    content = torch.load(checkpoints / "swin.pth")
    content["state_dict"]["head.fc.weight"].mul_(1e6)
    torch.save(content, tmp_path / "swin.pth")
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "model.pt", "--half")
    assert "in float16 are not finite; leave --half out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("model.txt", [], "give a name that ends in .onnx, .aot.pt2, .pt2, .pt"),
        (".onnx", [], "give a name that ends in"),
        ("nowhere/model.onnx", [], "there is no folder"),
        ("folder.onnx", [], "it is a folder; give the name of a file"),
        ("closed/model.pt", [], "can't be written to; give a file in another"),
        ("model.pt", ["--size", "0"], "--size 0: give height and width"),
        ("model.pt", ["--size", "1", "2", "3"], "--size 1 2 3: give height and width"),
        ("model.pt", ["--batch", "0"], "--batch 0: give a positive number"),
    ],
)
def test_bad_input_is_named(checkpoints, out, flags, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "closed").mkdir()
    # An administrator may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    with pytest.raises(SystemExit) as stopped:
        run(checkpoints, tmp_path / out, *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "missing", "message"),
    [
        ("model.onnx", "onnxscript", "onnxscript is not installed, which .onnx needs; pip install"),
        ("model.aot.pt2", "compiler", "needs a C++ compiler and there is none; install g++, or"),
    ],
)
def test_what_is_not_installed_is_named_first(out, missing, message, tmp_path, capsys, monkeypatch):
    def no_compiler():
        raise InvalidCxxCompiler

    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", no_compiler)
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / out)
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint_and_another_models_are_named(tmp_path, capsys):
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "swin.pth")
    for project, message in (("pvt", "pvt.pth"), ("swin", "none of its 1 weights")):
        with pytest.raises(SystemExit):
            run(tmp_path, tmp_path / "model.pt", project=project)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()
