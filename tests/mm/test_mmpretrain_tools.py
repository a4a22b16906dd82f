"""MMPretrain's own tools on one config of every family, as its users run them."""

from pathlib import Path

import matplotlib
import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.utils import digit_version
from PIL import Image

from acmix.checkpoint import read_checkpoint
from acmix.digests import KEY, digests_of
from forks import run_python
from support import ROOT
from weights_files import build

CONFIGS = {path.parts[-3]: path for path in sorted(ROOT.glob("*/configs/*digits-32px.py"))}
TOOLS = Path(mmpretrain.__file__).parent / ".mim" / "tools"
FEW = [
    "--cfg-options",
    "test_dataloader.dataset.indices=16",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOOLS.is_dir(), reason="MMPretrain is installed without its tools"),
]


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request, tmp_path_factory):
    """A config and such a checkpoint as its training leaves."""
    path = tmp_path_factory.mktemp(request.param) / "epoch_1.pth"
    weights = build(Config.fromfile(CONFIGS[request.param]).model).state_dict()
    meta = {"epoch": 1, "dataset_meta": {"classes": [str(digit) for digit in range(10)]}}
    state = {0: {"exp_avg": torch.ones(3)}}
    content = {"meta": meta, "state_dict": weights, "optimizer": {"state": state}}
    torch.save({**content, KEY: digests_of(content)}, path)
    return CONFIGS[request.param], path


def run(launch, *arguments, cwd):
    result = run_python(*launch, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_get_flops(trained, tmp_path):
    tool = TOOLS / "analysis_tools" / "get_flops.py"
    assert "Params: " in run([tool], trained[0], "--shape", 32, cwd=tmp_path)


def test_confusion_matrix(trained, tmp_path):
    tool = TOOLS / "analysis_tools" / "confusion_matrix.py"
    run([tool], *trained, "--show-path", tmp_path / "matrix.png", *FEW, cwd=tmp_path)
    assert (tmp_path / "matrix.png").is_file()


def test_vis_scheduler(trained, tmp_path):
    tool = TOOLS / "visualization" / "vis_scheduler.py"
    run([tool], trained[0], "--save-path", tmp_path / "rate.png", "--not-show", cwd=tmp_path)
    assert (tmp_path / "rate.png").is_file()


@pytest.mark.parametrize("mode", ["original", "pipeline"])
def test_browse_dataset(mode, trained, tmp_path):
    if mode != "original" and digit_version(matplotlib.__version__) >= (3, 11):
        pytest.skip("matplotlib 3.11 changed what this tool calls; install an earlier one")
    tool = TOOLS / "visualization" / "browse_dataset.py"
    flags = ["-o", tmp_path / "images", "-n", 3, "--not-show", "-m", mode]
    run([tool], trained[0], *flags, cwd=tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_publish_model_leaves_a_file_that_is_read(trained, tmp_path):
    tool = TOOLS / "model_converters" / "publish_model.py"
    config, checkpoint = trained
    run([tool], checkpoint, tmp_path / "published.pth", cwd=tmp_path)
    (published,) = tmp_path.glob("published_*.pth")
    content = read_checkpoint(published)
    assert "optimizer" not in content
    build(Config.fromfile(config).model).load_state_dict(content["state_dict"])


def test_vis_cam(trained, tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="pip install 'grad-cam<1.5'")
    config, checkpoint = trained
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    steps = '[dict(type="LoadImageFromFile"), dict(type="PackInputs")]'
    (tmp_path / "config.py").write_text(
        f"_base_ = [{str(config)!r}]\ntest_dataloader = dict(dataset=dict(pipeline={steps}))\n"
    )
    arguments = ["image.png", "config.py", checkpoint, "--save-path", "cam.png"]
    run(["-m", "acmix.mm.cam"], *arguments, cwd=tmp_path)
    assert Image.open(tmp_path / "cam.png").size == (32, 32)
