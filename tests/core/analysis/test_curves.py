"""Curves of a training from its log."""

import json

import pytest

from acmix import InputError
from acmix.analysis import read_curves


def write_run(work_dir, name, entries, end=""):
    folder = work_dir / name / "vis_data"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "scalars.json").write_text(lines + end)


def iteration(step, loss):
    return {"loss": loss, "epoch": 1, "iter": step, "step": step}


def test_a_run_that_went_on(tmp_path):
    first = [iteration(10, 3.0), {"alpha/0": 0.5, "step": 10}, {"accuracy/top1": 20.0, "step": 1}]
    second = [iteration(20, 1.5), iteration(30, 1.0), {"accuracy/top1": 40.0, "step": 2}]
    write_run(tmp_path, "1", [*first, iteration(20, 2.0)], end='{"loss": 1.9, "epo')
    write_run(tmp_path, "2", second)
    curves = read_curves(tmp_path)
    assert curves.train["loss"] == [(10, 3.0), (20, 1.5), (30, 1.0)]
    assert curves.train["alpha/0"] == [(10, 0.5)]
    assert curves.val == {"accuracy/top1": [(1, 20.0), (2, 40.0)]}
    run = tmp_path / "2"
    (run / "vis_data" / "20260101_000000.json").write_text("no log, and not read")
    for path in (run, run / "vis_data", run / "vis_data" / "scalars.json"):
        assert read_curves(path).train == {"loss": [(20, 1.5), (30, 1.0)]}


def test_what_is_no_log(tmp_path):
    with pytest.raises(InputError, match="no vis_data/scalars.json in it"):
        read_curves(tmp_path)
    write_run(tmp_path, "1", [{"no": "step"}, iteration(1, 1.0)])
    with pytest.raises(InputError, match=r"scalars.json: line 1 is no entry of a log"):
        read_curves(tmp_path)
