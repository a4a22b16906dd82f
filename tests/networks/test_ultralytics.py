"""ultralytics' own trainer, validator, predictor and exporter on models with ACmix layers."""

import pickle
import re

import numpy
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from torch import nn

from acmix import ACmix2d, InputError
from forks import run_python
from support import ROOT

pytest.importorskip("ultralytics", reason="pip install 'ultralytics>=8.4,<8.5'")

from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv

from acmix.integrations import ultralytics as integration

COLOURS = ((200, 30, 30), (30, 60, 220))


def draw_shapes(folder, count, generator):
    """Images of 64 to 96 pixels with two red squares or blue discs each, and their labels."""
    for i in range(count):
        width, height = map(int, generator.integers(64, 97, 2))
        image, rows = Image.new("RGB", (width, height), (40, 40, 40)), []
        draw = ImageDraw.Draw(image)
        for kind in map(int, generator.integers(0, 2, 2)):
            side = int(generator.integers(14, 30))
            x, y = (int(generator.integers(0, size - side)) for size in (width, height))
            shape = draw.ellipse if kind else draw.rectangle
            shape((x, y, x + side, y + side), fill=COLOURS[kind])
            box = ((x + side / 2) / width, (y + side / 2) / height, side / width, side / height)
            rows.append(" ".join(map(str, (kind, *box))))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Arguments of train and val: a small generated set, one process, no plots."""
    root, generator = tmp_path_factory.mktemp("shapes"), numpy.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        (root / split).mkdir()
        draw_shapes(root / split, count, generator)
    data = root / "data.yaml"
    data.write_text(f"path: {root}\ntrain: train\nval: val\nnames: [square, disc]\n")
    return dict(
        data=str(data),
        imgsz=64,
        batch=4,
        device="cpu",
        workers=0,
        plots=False,
        project=str(root / "runs"),
    )


def of_yaml():
    integration.register()
    return YOLO(integration.model_file("n"))


def of_replacement():
    model = YOLO("yolo11n.yaml")
    places = ("5.", "7.", "17.", "20.")
    integration.replace_convolutions(model, where=lambda name, _: name.startswith(places))
    return model


def of_checkpoint(tmp_path):
    """A model of a file, as a downloaded one would be, then replaced."""
    YOLO("yolo11n.yaml").save(tmp_path / "plain.pt")
    model = YOLO(tmp_path / "plain.pt")
    integration.replace_convolutions(model, where=lambda name, _: name.startswith("5."))
    return model


def count(model):
    return sum(isinstance(m, ACmix2d) for m in model.model.modules())


def with_statistics(model):
    """In evaluation, with statistics of the norms that no start has."""
    torch.manual_seed(0)
    for norm in model.model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return model.model.eval()


@torch.no_grad()
def run(network, dtype=torch.float32):
    torch.manual_seed(1)
    return network.to(dtype)(torch.rand(1, 3, 96, 64).to(dtype))[0].float()


def test_channels_are_scaled():
    integration.register()
    integration.register()  # Once more does nothing.
    for scale, widths in (("n", [128, 256, 64, 128]), ("m", [512, 512, 256, 512])):
        network = YOLO(integration.model_file(scale)).model
        assert [m.dim for m in network.modules() if isinstance(m, ACmix2d)] == widths
    with pytest.raises(InputError, match="choose from n, s, m, l, x"):
        integration.model_file("b")


def test_layers_stand_in_any_yaml():
    integration.register()
    rows = [[-1, 1, "Conv", [64, 3, 2]], [-1, 2, "ACmixConv", [64, 3, 1, 8, 5]]]
    rows += [[-1, 1, "ACmix2d", [32, 2, 3]], [-1, 1, "Focus", [64]]]
    layers, _ = tasks.parse_model(
        dict(nc=1, width_multiple=0.5, depth_multiple=1.0, backbone=rows, head=[]), 3, verbose=False
    )
    conv = layers[1][1].conv
    assert (conv.in_channels, conv.dim, conv.num_heads, conv.kernel_att) == (32, 32, 8, 5)
    assert (layers[2].in_channels, layers[2].dim, layers[2].num_heads) == (32, 16, 2)
    # ultralytics' own classes are back under their names.
    assert type(layers[3]) is tasks.Focus
    assert tasks.Focus.__module__ == "ultralytics.nn.modules.conv"
    assert layers(torch.rand(1, 3, 32, 32)).shape == (1, 32, 8, 8)


def test_other_versions_are_refused(monkeypatch):
    def parse(d, ch, verbose=True):
        raise KeyError("ACmixConv")

    monkeypatch.delattr(tasks, "registered_with_acmix", raising=False)
    monkeypatch.setattr(tasks, "parse_model", parse)
    with pytest.raises(InputError, match=r"reads yaml files in another way than 8\.4"):
        integration.register()
    assert tasks.parse_model is parse


@pytest.mark.parametrize("make", [of_yaml, of_replacement])
def test_fuse_gives_the_same(make):
    model = make()
    network = with_statistics(model)
    expected = run(network)
    network.fuse(verbose=False)
    assert network.is_fused()
    assert count(model) == 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    error = (run(network) - expected).abs().max() / expected.abs().max()
    assert 0 < error <= 1e-5
    # Half precision, as val runs it on a GPU: the same up to its rounding.
    half = (run(network, torch.float16) - expected).abs().max() / expected.abs().max()
    assert half <= 1e-2


def test_a_fused_model_is_not_trained_from(settings):
    model = of_replacement()
    model.model.eval()
    model.fuse()
    with pytest.raises(InputError, match="load the file again"):
        model.train(**settings, epochs=1, name="fused")


def test_replacement_is_refused_where_it_would_be_lost():
    model = of_replacement()
    with pytest.raises(InputError, match="replaced already"):
        integration.replace_convolutions(model)
    with pytest.raises(InputError, match="give the YOLO of"):
        integration.replace_convolutions(model.model)


def test_plain_replacement_is_warned_about(caplog):
    from acmix import replace_convolutions

    integration.register()
    source = YOLO("yolo11n.yaml").model
    replace_convolutions(source.model, where=lambda name, _: name == "5.conv")
    tasks.LOGGER.addHandler(caplog.handler)
    YOLO("yolo11n.yaml").model.load(source)
    assert "1 ACmix layers are plain again, model.5.conv" in caplog.text


AGAIN = """
import sys
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

for path in sys.argv[1:]:
    again = DetectionModel(YOLO(path).model.yaml, verbose=False)
    print("layers", sum(type(m).__name__ == "ACmix2d" for m in again.modules()))
"""


@pytest.mark.slow
def test_a_checkpoint_registers_in_a_fresh_process(tmp_path):
    files = []
    for make in (of_yaml, of_replacement):
        files.append(str(tmp_path / f"{make.__name__}.pt"))
        make().save(files[-1])
    for path in files:  # Each in a process of its own: one registers for the other.
        done = run_python("-c", AGAIN, path, cwd=tmp_path)
        assert "layers 4" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_yaml, of_replacement, of_checkpoint])
def test_models_survive_train(make, settings, tmp_path):
    model = make(tmp_path) if make is of_checkpoint else make()
    wanted = count(model)
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    gently = dict(optimizer="AdamW", lr0=0.002, warmup_epochs=0)
    model.train(**settings, **gently, epochs=1, name=make.__name__)
    assert count(model) == wanted
    rates = [n for n, _ in model.model.named_parameters() if n.endswith(("rate1", "rate2"))]
    assert len(rates) == 2 * wanted
    after = dict(model.model.named_parameters())
    assert all(not torch.equal(after[name], before[name]) for name in rates)
    runs = model.trainer.save_dir / "weights"
    assert count(YOLO(runs / "best.pt")) == wanted

    tuned = YOLO(runs / "last.pt")
    state = {name: p.clone() for name, p in tuned.model.named_parameters()}
    tuned.train(**settings, epochs=1, lr0=0.0, optimizer="SGD", warmup_epochs=0, name="tuned")
    assert count(tuned) == wanted
    # At a rate of zero it ends where it began: all weights were taken over.
    for name, parameter in tuned.model.named_parameters():
        assert torch.equal(parameter, state[name]), name

    predicted = tuned.predict(f"{settings['project']}/../val/0.png", imgsz=64, verbose=False)
    assert len(predicted) == 1
    metrics = tuned.val(**settings, name="val")
    assert 0 <= metrics.box.map50 <= 1
    assert count(tuned) == wanted
    assert count(pickle.loads(pickle.dumps(tuned.model)).float()) == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "form", "options"),
    [
        (of_yaml, "onnx", dict(simplify=False, dynamic=True)),
        (of_yaml, "torchscript", {}),
        (of_replacement, "onnx", dict(simplify=False)),
    ],
    ids=["onnx of any size", "torchscript", "onnx"],
)
def test_export_gives_the_same(make, form, options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime")
    model = make()
    with_statistics(model)
    model.save(tmp_path / "model.pt")
    model = YOLO(tmp_path / "model.pt")
    path = model.export(format=form, imgsz=(96, 64), device="cpu", **options)
    assert not any(layer.deployed for layer in model.model.modules() if isinstance(layer, ACmix2d))
    for size in ((96, 64), (64, 160)) if "dynamic" in options else ((96, 64),):
        torch.manual_seed(1)
        image = torch.rand(1, 3, *size)  # The batch of a trace is fixed by YOLO11's own attention.
        with torch.no_grad():
            expected = model.model(image)[0]
        if form == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
        else:
            found = torch.jit.load(path)(image)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
def test_the_page_says_what_runs(settings, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "your-network" / "yolo.md").read_text()
    session, replacing = re.findall(r"```py\n(.*?)```", page, re.DOTALL)[:2]
    # Smaller, and offline.
    options = {name: value for name, value in settings.items() if name not in ("data", "imgsz")}
    for there, here in {
        '"coco8.yaml"': repr(settings["data"]),
        "epochs=100, imgsz=640": f"epochs=1, imgsz=64, exist_ok=True, name='page', **{options!r}",
        '"runs/detect/train/weights/best.pt"': repr(f"{settings['project']}/page/weights/best.pt"),
        '"https://ultralytics.com/images/bus.jpg"': repr(f"{settings['project']}/../val/0.png"),
    }.items():
        assert there in session
        session = session.replace(there, here)
    monkeypatch.chdir(tmp_path)
    exec(session, {})
    capsys.readouterr()
    exec(replacing, {})
    assert capsys.readouterr().out.strip().endswith("4 replaced")
    rows = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    integration.register()
    layers, _ = tasks.parse_model(
        dict(nc=1, width_multiple=0.125, depth_multiple=1.0, backbone=rows, head=[]), 8, False
    )
    assert layers(torch.rand(1, 8, 16, 16)).shape == (1, 64, 8, 8)


def test_conv_takes_activations():
    block = integration.ACmixConv(8, 16, 3, 2, act=False)
    assert isinstance(block.act, nn.Identity)
    assert isinstance(block, Conv)
    assert block(torch.rand(1, 8, 9, 7)).shape == (1, 16, 5, 4)
