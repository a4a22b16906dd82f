"""``make gpu`` as it runs on a machine that has torch and pytest, and no device."""

import json
import os
import subprocess
import sys

import pytest

from support import ROOT

MISSING = ("mmengine", "mmcv", "mmpretrain", "hypothesis", "cupy", "acmix_swin", "acmix_resnet")


@pytest.mark.slow
def test_it_runs_as_far_as_it_goes(tmp_path):
    hide = f"import sys; sys.modules.update(dict.fromkeys({MISSING}))"
    (tmp_path / "sitecustomize.py").write_text(hide)
    out = tmp_path / "out"
    done = subprocess.run(
        ["make", "-s", "-C", ROOT, "gpu", f"PYTHON={sys.executable}", f"OUT={out}"],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((out / "gpu.json").read_text())
    assert report["device"]["name"] == "none"
    assert report["tests"]["all"].startswith("exit 0")
    assert "passed" in report["tests"]["all"]
    assert report["failed"] == []
    cases = {row["case"].split(" 8²")[0] for row in report["rows"]}
    assert cases == {"both paths", "convolution path", "attention", "swin", "resnet"}
    assert not any("milliseconds" in row for row in report["rows"])
