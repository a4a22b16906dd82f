"""Checkpoints are on the disk before anything else goes, and the newest whole one is found."""

import os
from pathlib import Path

import pytest
import torch

from acmix import InputError
from acmix.digests import damaged_tensors, digests_of
from acmix.mm.files import whole_file
from kills import KillAtFileOperation, run_until_killed
from runs import StopHook, assert_same_end, read, resume, run, tiny_config

KEEP_ONE = {"default_hooks.checkpoint.max_keep_ckpts": 1}


def names(folder):
    return sorted(
        path.name for path in folder.iterdir() if path.suffix != ".py" and not path.is_dir()
    )


def assert_complete(folder):
    """A run's folder holds the last checkpoint, the best one that it names, and nothing else."""
    info = read(folder / "epoch_2.pth")["message_hub"]["runtime_info"]
    best = Path(info["best_ckpt"])
    assert names(folder) == sorted([best.name, "epoch_2.pth", "last_checkpoint"])
    assert read(best)["meta"]["epoch"] in (1, 2)
    assert (folder / "last_checkpoint").read_text() == str(folder / "epoch_2.pth")


def test_order_of_writing(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    with whole_file(tmp_path / "file") as partial:
        partial.write_text("new")
        assert not (tmp_path / "file").exists()
    assert calls == ["fsync", "replace", "fsync"]
    assert names(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    writing = whole_file(tmp_path / "file")
    writing.__enter__().write_text("half")
    assert not writing.__exit__(OSError, OSError("full"), None)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_config(folder, **KEEP_ONE))
    assert_complete(folder)
    return folder


@pytest.mark.slow
def test_a_kill_at_any_file_operation_loses_nothing(whole, tmp_path):
    for count in range(3, 200, 5):  # `make soak` goes through every one
        work_dir = tmp_path / str(count)
        killed = run_until_killed(tiny_config(work_dir, **KEEP_ONE), KillAtFileOperation(count))
        for path in work_dir.glob("*.pth"):
            read(path)
        resume(tiny_config(work_dir, **KEEP_ONE))
        assert_complete(work_dir)
        assert_same_end(work_dir, whole, "epoch_2.pth")
        if not killed:
            assert count > 20
            return
    raise AssertionError("no run came to its end")


def test_a_checkpoint_knows_what_is_removed_after_it(tmp_path):
    run(tiny_config(tmp_path, **KEEP_ONE), StopHook("before_val", 2))
    info = read(tmp_path / "epoch_2.pth")["message_hub"]["runtime_info"]
    assert info["keep_ckpt_ids"] == [1, 2]  # so that a resumed run removes it, if this one did not
    assert not (tmp_path / "epoch_1.pth").exists()


def test_a_missed_validation_is_made_up(whole, tmp_path):
    run(tiny_config(tmp_path / "work"), StopHook("before_val", 1))
    assert names(tmp_path / "work") == ["epoch_1.pth", "last_checkpoint"]
    assert read(tmp_path / "work" / "epoch_1.pth")["meta"]["validated"] is False
    runner = resume(tiny_config(tmp_path / "work"))
    assert len(runner.message_hub.get_scalar("val/accuracy/top1").data[0]) == 2
    assert_same_end(tmp_path / "work", whole, "epoch_2.pth")


def test_a_validation_that_was_made_is_not_repeated(tmp_path):
    run(tiny_config(tmp_path / "work"), StopHook("before_train_epoch", 2))
    runner = resume(tiny_config(tmp_path / "work"))
    assert len(runner.message_hub.get_scalar("val/accuracy/top1").data[0]) == 2


@pytest.mark.parametrize("pointer", ["", "/nowhere/epoch_9.pth", "epoch_1.pth\n", None])
def test_the_newest_checkpoint_is_found_whatever_the_pointer_says(pointer, whole, tmp_path):
    work_dir = tmp_path / "work"
    run(tiny_config(work_dir), StopHook("before_train_epoch", 2))
    if pointer is None:
        (work_dir / "last_checkpoint").unlink()
    else:
        (work_dir / "last_checkpoint").write_text(pointer)
    runner = resume(tiny_config(work_dir))
    assert runner.resumed_from == str(work_dir / "epoch_1.pth")
    assert_same_end(work_dir, whole, "epoch_2.pth")


def test_damaged_checkpoints_are_passed_over_by_name(whole, tmp_path, caplog, monkeypatch):
    work_dir = tmp_path / "work"
    run(tiny_config(work_dir))
    newest = work_dir / "epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    (work_dir / "epoch_3.pth").touch()
    passed = []
    monkeypatch.setattr("logging.Logger.warning", lambda self, text, *a, **k: passed.append(text))
    runner = resume(tiny_config(work_dir))
    assert runner.resumed_from == str(work_dir / "epoch_1.pth")
    named = [text for text in passed if text.startswith("Passed over")]
    assert [name in text for name, text in zip(("epoch_3", "epoch_2"), named, strict=True)]
    assert_same_end(work_dir, whole, "epoch_2.pth")


def test_a_folder_of_damaged_checkpoints_is_no_fresh_start(tmp_path):
    (tmp_path / "epoch_1.pth").write_bytes(b"half")
    with pytest.raises(InputError, match="none of its 1 checkpoints can be read"):
        resume(tiny_config(tmp_path))


def test_nothing_to_resume_is_a_fresh_start(whole, tmp_path):
    resume(tiny_config(tmp_path / "work"))
    assert_same_end(tmp_path / "work", whole, "epoch_2.pth")


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    work_dir = tmp_path / "work"
    run(tiny_config(work_dir, **KEEP_ONE), StopHook("before_train_epoch", 2))
    best = Path(read(work_dir / "epoch_1.pth")["message_hub"]["runtime_info"]["best_ckpt"])
    for name in ("epoch_2.pth.partial", "best_accuracy_top1_epoch_0.pth", "mine.pth.partial"):
        (work_dir / name).write_bytes(best.read_bytes())
    resume(tiny_config(work_dir, **KEEP_ONE))
    (work_dir / "mine.pth.partial").unlink()
    assert_complete(work_dir)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_old_checkpoint_stays_until_the_new_one_is_whole(keep, tmp_path, monkeypatch):
    class Full(Exception):
        pass

    def fail(*args, **kwargs):
        raise Full

    changes = {"default_hooks.checkpoint.max_keep_ckpts": keep, "train_cfg.max_epochs": 3}
    cfg = tiny_config(tmp_path / "work", **changes)
    run(cfg, StopHook("before_train_epoch", 3))
    before = names(tmp_path / "work")
    monkeypatch.setattr("mmengine.runner.runner.save_checkpoint", fail)
    with pytest.raises(Full):
        resume(tiny_config(tmp_path / "work", **changes))
    assert names(tmp_path / "work") == before


def test_a_part_that_was_taken_out_as_a_whole_is_no_damage():
    content = {"state_dict": {"a": torch.ones(2)}, "optimizer": {"state": {0: torch.ones(3)}}}
    content["digests"] = digests_of(content)
    del content["optimizer"]
    assert not damaged_tensors(content)
    content["state_dict"]["a"] = torch.zeros(2)
    assert damaged_tensors(content) == ["state_dict.a"]
    content["state_dict"] = {}
    assert damaged_tensors(content) == ["state_dict.a"]
