"""Alpha and beta of every layer in the log of a training."""

import json
from copy import deepcopy

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from acmix.analysis import read_curves
from processes import together
from runs import EMA, StopHook, read, resume, run, tiny_config

LOGGED = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
LAYER = "backbone.stages.0.blocks.0.attn.w_msa"


def logged_config(work_dir, **changes):
    cfg = tiny_config(work_dir, **changes)
    cfg.visualizer = deepcopy(LOGGED)
    return cfg


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_epoch_in_both_logs(tmp_path):
    runner = run(logged_config(tmp_path, custom_hooks=EMA))
    curves = read_curves(tmp_path)
    alphas = [tag for tag in curves.train if tag.startswith("alpha/")]
    assert len(alphas) == 2
    assert alphas[0] == f"alpha/{LAYER}"
    for name in ("alpha", "beta"):
        steps, values = zip(*curves.train[f"{name}/{LAYER}"], strict=True)
        assert steps == (3, 6)
        assert values[0] != values[1]
        # The trained one, not the average that is saved as the weights.
        weights = {"alpha": "rate1", "beta": "rate2"}[name]
        trained = runner.model.get_parameter(f"{LAYER}.{weights}").item()
        assert values[1] == trained
        assert values[1] != read(tmp_path / "epoch_2.pth")["state_dict"][f"{LAYER}.{weights}"]
    (events,) = (tmp_path / runner.timestamp / "vis_data").glob("events.*")
    board = EventAccumulator(str(events))
    board.Reload()
    tensorboard = [(e.step, e.value) for e in board.Scalars(f"beta/{LAYER}")]
    assert tensorboard == [(s, pytest.approx(v)) for s, v in curves.train[f"beta/{LAYER}"]]
    # Both files of JSON.
    (other,) = (tmp_path / runner.timestamp / "vis_data").glob("2*.json")
    assert sum(f"beta/{LAYER}" in entry for entry in entries(other)) == 2
    # The line in the terminal would be of no use.
    assert "alpha/" not in (tmp_path / runner.timestamp / f"{runner.timestamp}.log").read_text()


def test_a_resumed_run_goes_on(tmp_path):
    run(logged_config(tmp_path / "whole"))
    run(logged_config(tmp_path / "halves"), StopHook("before_train_iter", 5))
    stopped = next((tmp_path / "halves").glob("2*"))
    stopped.rename(tmp_path / "halves" / "1")  # both start within a second
    resume(logged_config(tmp_path / "halves"))
    whole, halves = (read_curves(tmp_path / name).train for name in ("whole", "halves"))
    assert halves[f"alpha/{LAYER}"] == whole[f"alpha/{LAYER}"]


def test_a_run_without_epochs(tmp_path):
    hooks = [dict(type="RatesHook", iterations=2)]
    loop = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=5, val_interval=9)
    run(logged_config(tmp_path, train_cfg=loop, custom_hooks=hooks))
    steps = [step for step, _ in read_curves(tmp_path).train[f"alpha/{LAYER}"]]
    assert steps == [2, 4]


@pytest.mark.slow
def test_one_of_two_processes_writes(tmp_path):
    cfg = logged_config(tmp_path / "run", launcher="pytorch")
    together(2, str(tmp_path / "meeting"), lambda rank: run(cfg))
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    assert sum(f"alpha/{LAYER}" in entry for entry in entries(log)) == 2
