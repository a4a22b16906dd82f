"""A run that is stopped and resumed ends as one that was not, bit by bit."""

import pytest

from runs import EMA, MIXUP, StopHook, assert_same_end, copied, resume, run, tiny_config

EVERY_ITERATION = {
    "default_hooks.checkpoint.by_epoch": False,
    "default_hooks.checkpoint.interval": 1,
    "default_hooks.checkpoint.filename_tmpl": "iter_{}.pth",
}
RECIPES = {
    "mixup, averaged": {
        "model.train_cfg": MIXUP,
        "model.head.loss": dict(
            _delete_=True, type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"
        ),
        "custom_hooks": EMA,
    },
    # Three batches an epoch: gradients wait at its end.
    "accumulation": {"optim_wrapper.accumulative_counts": 2},
    "two workers": {"train_dataloader.num_workers": 2},
    "two workers that stay": {
        "train_dataloader.num_workers": 2,
        "train_dataloader.persistent_workers": True,
    },
    "no seed": {"randomness": dict(seed=None)},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_after_any_iteration_changes_nothing(recipe, tmp_path):
    changes = {**EVERY_ITERATION, **RECIPES[recipe]}
    run(tiny_config(tmp_path / "whole", **changes))
    for iteration in (2, 3, 5) if "workers" not in recipe else (4,):
        work_dir = tmp_path / f"from_{iteration}"
        copied(tmp_path / "whole", f"iter_{iteration}.pth", work_dir)
        runner = resume(tiny_config(work_dir, **changes))
        assert (runner.epoch, runner.iter) == (2, 6)
        assert_same_end(work_dir, tmp_path / "whole", "iter_6.pth")


def test_a_run_stopped_in_its_second_epoch_ends_as_a_whole_one(tmp_path):
    run(tiny_config(tmp_path / "whole"))
    stopped = run(tiny_config(tmp_path / "halves"), StopHook("before_train_iter", 5))
    assert stopped.iter == 4
    resume(tiny_config(tmp_path / "halves"))
    assert_same_end(tmp_path / "halves", tmp_path / "whole", "epoch_2.pth")


@pytest.mark.parametrize(("batch", "iterations"), [(4, 5), (20, 1)])
def test_other_batches_move_the_schedule_and_are_named(batch, iterations, tmp_path):
    run(tiny_config(tmp_path, **{"train_cfg.max_epochs": 1}))
    resume(tiny_config(tmp_path, **{"train_dataloader.batch_size": batch}))
    logs = "".join(path.read_text() for path in tmp_path.glob("*/*.log"))
    assert logs.count("keep train_dataloader.batch_size times the number of processes as it") == 1
    assert f"iteration 3 is not in epoch 2 now, as an epoch has {iterations} iterations;" in logs


ITERATIONS = {
    "train_cfg": dict(
        _delete_=True, type="IterBasedTrainLoop", max_iters=6, val_interval=3, val_begin=1
    ),
    **EVERY_ITERATION,
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
@pytest.mark.parametrize("workers", [0, 2])
def test_iterations_without_epochs_are_resumed_too(sampler, workers, tmp_path):
    changes = {
        **ITERATIONS,
        "train_dataloader.sampler": dict(type=sampler, shuffle=True),
        "train_dataloader.num_workers": workers,
        "log_processor": dict(by_epoch=False),
    }
    run(tiny_config(tmp_path / "whole", **changes))
    for iteration in (3, 4):
        work_dir = tmp_path / f"from_{iteration}"
        copied(tmp_path / "whole", f"iter_{iteration}.pth", work_dir)
        resume(tiny_config(work_dir, **changes))
        assert_same_end(work_dir, tmp_path / "whole", "iter_6.pth")
