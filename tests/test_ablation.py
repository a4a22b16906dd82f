"""The ablation on digits: fair runs, a file that kills don't hurt, tables and curves of it."""

import csv
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from mmpretrain.registry import MODELS

from acmix import InputError
from acmix.modules import ACmixBase
from forks import run_python
from support import ROOT

FOLDER = ROOT / "core" / "ablation"
sys.path.append(str(FOLDER))

import plot  # noqa: E402
import run  # noqa: E402
import summary  # noqa: E402
import training  # noqa: E402
from grid import IMAGES, MODES, Run, all_runs  # noqa: E402
from results import COLUMNS, Results, read_rows  # noqa: E402

RUN = Run("swin", "one_one", "learnable", "10", 15, 3)
OUTCOME = dict.fromkeys(("config", "top1", "loss", "alpha", "beta", "device", "versions"), "1")
OUTCOME["seconds"] = "2"


def test_images_are_balanced_and_nested():
    _, labels = training.digits("train")
    sets = [training.subset(labels, images, seed=1) for images in IMAGES]
    for count, chosen in zip(IMAGES[:-1], sets, strict=False):
        assert labels[chosen].bincount().tolist() == [int(count)] * 10
    for smaller, larger in zip(sets, sets[1:], strict=False):
        assert set(smaller.tolist()) < set(larger.tolist())
    assert sorted(sets[-1].tolist()) == list(range(1437))
    assert set(sets[0].tolist()) != set(training.subset(labels, "10", seed=2).tolist())


def test_modes_of_a_seed_see_the_same_crops():
    ours, others = map(training.Batches, (RUN, replace(RUN, mix="attention")))
    for _ in range(5):
        assert all(map(torch.equal, ours.draw(), others.draw()))


def test_images_are_those_of_the_config():
    crops = training.Batches(RUN)
    images, labels = crops.draw()
    whole = training.digits("train")[0]
    # A crop is a window of its image with a border of zeros.
    centre = crops.crops[:, :, crops.padding, crops.padding]
    assert {image.numpy().tobytes() for image in centre} <= {
        image.numpy().tobytes() for image in whole
    }
    assert not crops.crops[:, :, 0, 0, : crops.padding].any()
    assert images.shape[0] == labels.shape[0] == training.BATCH
    preprocessor = MODELS.build(
        dict(training.config("swin").data_preprocessor, type="ClsDataPreprocessor")
    )
    theirs = preprocessor(dict(inputs=images))["inputs"]
    model = torch.nn.Identity()
    model.extract_feat = model.head = lambda x: x
    assert torch.equal(training._scores(model, images, "swin"), theirs)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_reaches_every_layer(mode):
    for model in training.CONFIGS:
        built = training.build(Run(model, *mode, "10", 15, 0))
        layers = [layer for layer in built.modules() if isinstance(layer, ACmixBase)]
        assert layers
        assert {layer.mix for layer in layers} == {mode[0]}
        assert {layer.dep_conv.mode for layer in layers if layer.has_convolution} <= {mode[1]}


def decays(optimizer):
    """Weight decay of every parameter."""
    return {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}


def test_optimiser_and_schedule_are_those_of_the_config():
    model, cfg = training.build(RUN), training.config("swin")
    wrapper = training.build_optim_wrapper(model, cfg.optim_wrapper)
    settings = decays(wrapper.optimizer)
    training._join_groups(wrapper.optimizer)
    assert decays(wrapper.optimizer) == settings
    assert {id(p) for p in model.parameters()} == settings.keys()
    assert len(wrapper.optimizer.param_groups) == 2
    # An epoch of so many batches is a fifteenth of the run.
    schedule = [training._scheduler(dict(part), wrapper, 3) for part in cfg.param_scheduler]
    for scheduler in schedule:
        assert type(scheduler) in PARAM_SCHEDULERS.module_dict.values()
    rates = []
    for _ in range(45):
        rates.append(wrapper.get_lr()["lr"][0])
        for scheduler in schedule:
            scheduler.step()
    assert rates[0] == pytest.approx(2e-5)
    assert max(rates) == rates[6] == pytest.approx(2e-3)
    assert rates[-1] < 2e-5


def test_a_run_is_the_same_again():
    first, second = training.train(RUN), training.train(RUN)
    first.pop("seconds")
    second.pop("seconds")
    assert first == second
    assert first["alpha"] == first["beta"] == ""
    assert 0 <= float(first["top1"]) <= 100


def test_the_file_keeps_whole_lines(tmp_path):
    path = tmp_path / "results.csv"
    with Results(path, "r") as results:
        results.append(RUN, OUTCOME)
        with pytest.raises(InputError, match="another run writes it"), Results(path, "r"):
            pass
    whole = path.read_bytes()
    path.write_bytes(whole + b"swin,one_one,lear")  # what a loss of power may leave
    with Results(path, "r") as results:
        assert results.done == {RUN.key}
        assert path.read_bytes() == whole
    with pytest.raises(InputError, match="other settings"), Results(path, "s"):
        pass
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no file of the ablation"), Results(path, "r"):
        pass


def test_a_folder_that_is_none_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another --out"), Results(tmp_path / "file/x", "r"):
        pass


class BrokenPool:
    """One whose first process is killed."""

    cancelled = False

    def __init__(self, *_):
        pass

    def submit(self, *_):
        future = Future()
        future.set_exception(BrokenProcessPool())
        return future

    def shutdown(self, cancel_futures):
        BrokenPool.cancelled = cancel_futures


def test_a_killed_process_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ProcessPoolExecutor", BrokenPool)
    with Results(tmp_path / "results.csv", "r") as results:
        with pytest.raises(InputError, match="with fewer --jobs"):
            run._make([RUN], 2, results)
        assert not results.done
    assert BrokenPool.cancelled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds=0: give a positive integer"),
        (["--jobs", "-1"], "--jobs=-1: give a positive integer"),
        (["--only", "swin"], "--only swin: give name=value"),
        (["--only", "mox=one_one"], "did you mean 'mix'"),
        (["--only", "mix=one_on"], "did you mean 'one_one'"),
        (["--only", "mix=attention", "shift=fixed"], "no run is left"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(arguments, message, tmp_path):
    done = run_python(FOLDER / "run.py", "--out", tmp_path / "out", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def start(out: Path, jobs: int) -> subprocess.Popen:
    """Three short runs."""
    only = ["--only", "model=swin", "images=10", "steps=45", "mix=attention"]
    command = [sys.executable, FOLDER / "run.py", "--out", out, "--jobs", str(jobs), "--seeds", "3"]
    return subprocess.Popen([*command, *only], stdout=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the processes")
def test_a_killed_ablation_goes_on(tmp_path):
    killed, path = start(tmp_path, jobs=2), tmp_path / "results.csv"
    killed.stdout.readline()  # "3 runs, 0 of them done"
    first = killed.stdout.readline()
    workers = children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers):
        assert time.monotonic() < end, "a worker outlives the process that is killed"
        time.sleep(0.1)
    before = path.read_text()
    assert before.endswith("\n")
    done = before.count("\n") - 1
    assert 1 <= done < 3
    again = start(tmp_path, jobs=1)
    output, _ = again.communicate()
    assert again.returncode == 0
    assert output.startswith(f"3 runs, {done} of them done")
    assert path.read_text().startswith(before)
    rows = read_rows(path)
    assert sorted(row["seed"] for row in rows) == ["0", "1", "2"]
    assert first.split()[1] == rows[0]["mix"]
    assert (tmp_path / "tables.md").is_file()
    assert (tmp_path / "ablation-swin.svg").is_file()


def rows_of(top1):
    """Lines of one cell, from top-1 of every mix by seed."""
    empty = dict.fromkeys(COLUMNS, "")
    place = dict(model="swin", shift="learnable", images="10", steps="45", seconds="60")
    return [
        empty | place | dict(mix=mix, seed=str(seed), top1=str(value), device="a", versions="b")
        for mix, values in top1.items()
        for seed, value in enumerate(values)
    ]


def test_paired_test():
    assert summary.sign_flip_p([0.1, 2.0, 3.0, 0.3, 0.2]) == summary.smallest_p(5) == 0.0625
    assert summary.sign_flip_p([1.0, -1.0, 0.0]) == 1
    # Of eight sums, 6 and 4 and their negatives are as large as 4.
    assert summary.sign_flip_p([-1.0, 2.0, 3.0]) == 0.5
    # 0.1 + 0.2 - 0.1 and -0.1 + 0.2 + 0.1 are the same, but for roundings.
    assert summary.sign_flip_p([0.1, 0.2, -0.1]) == 0.75


def test_tables_tell_means_differences_and_marks():
    text = summary.render(
        rows_of({"alpha_beta": [80, 82, 84], "attention": [70, 71, 75], "one_one": [80, 80, 88]})
    )
    assert "| attention only | −10.0 ± 1.0 (0.25) |" in text
    assert "| attention only | 72.0 ± 2.6 * |" in text
    assert "| 1, 1 | 82.7 ± 4.6 |" in text
    assert "1 of 2 differences reach it (marked *)" in text
    assert "9 runs, 9 minutes of one processor: a, b." in text


def test_a_seed_counts_when_it_is_whole():
    results = summary.collect(rows_of({"alpha_beta": [80, 82, 84], "one_one": [80, 81]}))
    assert results.seeds == ["0", "1"]
    assert list(results.top1.values()) == [
        {("alpha_beta", "learnable"): [80, 82], ("one_one", "learnable"): [80, 81]}
    ]
    one = summary.render(rows_of({"alpha_beta": [80], "one_one": [81.5]}))
    assert "| 1, 1 | +1.5 |" in one
    assert "*" not in one
    assert summary.render(rows_of({"alpha_beta": []})) == "No seed has every run yet."


@pytest.mark.slow
def test_curves_are_those_of_the_file(tmp_path):
    with (FOLDER / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = plot.draw_all(summary.collect(rows), tmp_path)
    assert [path.name for path in drawn] == ["ablation-resnet.svg", "ablation-swin.svg"]
    pinned = (ROOT / "ci" / "constraints.txt").read_text()
    if f"matplotlib=={matplotlib.__version__}\n" not in pinned:
        pytest.skip(
            f"the curves of the page are of another matplotlib than {matplotlib.__version__}"
        )
    for path in drawn:
        assert path.read_bytes() == (ROOT / "docs" / "images" / path.name).read_bytes()


def test_results_of_the_page_are_of_the_grid():
    rows = read_rows(FOLDER / "results.csv")
    assert {row["recipe"] for row in rows} == {training.recipe()}
    known = {known.key for known in all_runs(5)}
    keys = [tuple(row[name] for name in COLUMNS[:6]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= known
