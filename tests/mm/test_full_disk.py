"""A checkpoint that can't be written ends a run with a reason, and leaves those that there are."""

import resource
import subprocess

import pytest

from forks import in_a_clean_fork, train_with_limit
from runs import read
from support import ROOT

SWIN = ROOT / "swin"
CONFIG = "configs/acmix-swin-nano_1xb64_digits-32px.py"
SMALL = [f"{split}_dataloader.dataset.indices=64" for split in ("train", "val")]
SMALL += ["default_hooks.checkpoint.max_keep_ckpts=1"]


def train(work_dir, *arguments, epochs=1, limit=resource.RLIM_INFINITY):
    """The command in a process of its own: exit code and what it printed."""
    output = work_dir.parent / "output.txt"
    options = ["--cfg-options", f"train_cfg.max_epochs={epochs}", *SMALL]
    command = [CONFIG, "--work-dir", str(work_dir), *arguments, *options]
    return in_a_clean_fork(train_with_limit, output, limit, SWIN, command), output.read_text()


def assert_told(output, path, reason):
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"error: {path}: "), output[-3000:]
    assert reason in last
    assert last.endswith("go on with --resume")
    assert "Traceback" not in output


@pytest.fixture
def first(tmp_path):
    """The checkpoint of a run of one epoch, with others beside it."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    code, output = train(work_dir)
    assert code == 0, output[-3000:]
    return work_dir / "epoch_1.pth"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.pth*")}


@pytest.mark.slow
def test_a_limit_of_the_file_size(first):
    folder, before = first.parent, contents(first.parent)
    limit = first.stat().st_size - 1000
    code, output = train(folder, "--resume", epochs=2, limit=limit)
    assert code == 2
    assert_told(output, folder / "epoch_2.pth", "File too large")
    assert contents(folder) == before
    assert (folder / "last_checkpoint").read_text() == str(first)
    code, output = train(folder, "--resume", epochs=2)
    assert code == 0, output[-3000:]
    assert read(folder / "epoch_2.pth")["meta"]["epoch"] == 2


@pytest.fixture
def small_disk(tmp_path, first):
    """A disk for two checkpoints and no best one, where the machine lets this user mount it."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={11 * first.stat().st_size // 5}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)]
    try:
        allowed = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this user can't mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(small_disk):
    code, output = train(small_disk)
    assert code == 2
    # It was full when the first checkpoint was written again, after the validation.
    assert_told(output, small_disk / "epoch_1.pth", "no space left to save the checkpoint")
    assert read(small_disk / "epoch_1.pth")["meta"]["validated"] is False
    assert sorted(contents(small_disk)) == ["best_accuracy_top1_epoch_1.pth", "epoch_1.pth"]
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    code, output = train(small_disk, "--resume", epochs=2)
    assert code == 0, output[-3000:]
    assert read(small_disk / "epoch_2.pth")["meta"]["validated"] is True
