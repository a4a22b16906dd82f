"""What a checkpoint says is data: resuming runs nothing of it and touches no other file."""

from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from acmix import CheckpointError, InputError
from acmix.mm.runner import ACmixRunner
from runs import EMA, StopHook, read, resume, run, tiny_config

CODE = "import pathlib\npathlib.Path('executed').touch()\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a run of one epoch."""
    work_dir = tmp_path_factory.mktemp("saved")
    run(tiny_config(work_dir, **{"train_cfg.max_epochs": 1}))
    return work_dir / "epoch_1.pth"


def changed(saved, work_dir, change):
    """A copy of the checkpoint in another work dir, after a change."""
    checkpoint = read(saved)
    change(checkpoint)
    checkpoint.pop("digests", None)
    work_dir.mkdir(exist_ok=True)
    path = work_dir / "epoch_1.pth"
    torch.save(checkpoint, path)
    (work_dir / "last_checkpoint").write_text(str(path))
    return path


def set_at(*keys, value):
    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint.setdefault(key, {})
        checkpoint[keys[-1]] = value

    return change


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_no_text_of_a_file_is_run_as_a_config(key, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed(saved, tmp_path / "work", set_at("meta", key, value=CODE))
    resume(tiny_config(tmp_path / "work"))
    assert not Path("executed").exists()
    assert Path("work", "epoch_2.pth").is_file()


def test_only_known_keys_reach_the_hub(saved, tmp_path):
    def change(checkpoint):
        checkpoint["message_hub"]["runtime_info"].update(max_epochs=0, cfg=CODE)
        checkpoint["message_hub"]["resumed_keys"]["cfg"] = False

    changed(saved, tmp_path / "work", change)
    runner = resume(tiny_config(tmp_path / "work"))
    assert runner.message_hub.get_info("max_epochs") == 2
    assert runner.message_hub.get_info("cfg") != CODE


WRONG = {
    "epoch": set_at("meta", "epoch", value="1"),
    "epoch below 0": set_at("meta", "epoch", value=-1),
    "iter": set_at("meta", "iter", value=None),
    "seed": set_at("meta", "seed", value=2**40),
    "meta": set_at("meta", value=[]),
    "hub": set_at("message_hub", value=[1]),
    "best_score": set_at("message_hub", "runtime_info", "best_score", value="high"),
    "best_ckpt": set_at("message_hub", "runtime_info", "best_ckpt", value=["/"]),
    "keep_ckpt_ids": set_at("message_hub", "runtime_info", "keep_ckpt_ids", value=["../x"]),
    "optimizer": set_at("optimizer", value=[1]),
    "optimizer state": set_at("optimizer", "state", value={0: {"exp_avg": "x"}}),
    "optimizer groups": set_at("optimizer", "param_groups", value=[]),
    "schedulers": set_at("param_schedulers", value=[{}, {}]),
    "averages": set_at("ema_state_dict", value={"steps": 3}),
    "processes": set_at("processes", value=[{"random": {"torch": torch.zeros(3)}}]),
    "numpy": set_at(
        "processes", value=[{"random": {"python": [3, 0, 0], "numpy": [0, 9**9, 0, 0]}}]
    ),
    "gradients": set_at("processes", value=[{"gradients": {"fc": torch.zeros(3)}}]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_of_another_type_is_refused(name, saved, tmp_path):
    path = changed(saved, tmp_path / "work", WRONG[name])
    with pytest.raises(CheckpointError) as caught:
        resume(tiny_config(tmp_path / "work"), path=path)
    assert str(path) in str(caught.value)


def test_a_scheduler_takes_no_attribute_that_it_does_not_have(saved, tmp_path):
    changed(
        saved,
        tmp_path / "work",
        lambda c: c["param_schedulers"][0].update(step="gone", T_max="x", optimizer=None),
    )
    runner = resume(tiny_config(tmp_path / "work"))
    assert callable(runner.param_schedulers[0].step)
    assert runner.param_schedulers[0].T_max == 6


def test_switches_of_an_optimizer_are_those_of_the_config(saved, tmp_path):
    changed(
        saved,
        tmp_path / "work",
        lambda c: c["optimizer"]["param_groups"][0].update(maximize=True, betas="no"),
    )
    runner = resume(tiny_config(tmp_path / "work"))
    group = runner.optim_wrapper.param_groups[0]
    assert group["maximize"] is False
    assert group["betas"] == (0.9, 0.999)


def test_averages_of_another_model_are_refused(saved, tmp_path):
    path = changed(
        saved, tmp_path / "work", set_at("ema_state_dict", value={"module.x": torch.ones(1)})
    )
    with pytest.raises(CheckpointError, match="averaged weights are of another model"):
        resume(tiny_config(tmp_path / "work", custom_hooks=EMA), path=path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_files_elsewhere_are_never_deleted(kind, saved, tmp_path):
    victim = tmp_path / "other" / "best_accuracy_top1_epoch_1.pth"
    victim.parent.mkdir()
    victim.write_text("precious") if kind == "file" else victim.mkdir()

    def change(checkpoint):
        checkpoint["message_hub"]["runtime_info"].update(best_ckpt=str(victim), best_score=-1.0)

    changed(saved, tmp_path / "work", change)
    runner = resume(tiny_config(tmp_path / "work"))
    assert victim.exists()
    best = Path(runner.message_hub.get_info("best_ckpt"))
    assert best.parent == tmp_path / "work"
    assert best.is_file()


def test_resuming_elsewhere_leaves_the_first_run_whole(saved, tmp_path):
    before = {path.name for path in saved.parent.glob("*.pth")}
    cfg = tiny_config(tmp_path / "work", **{"default_hooks.checkpoint.max_keep_ckpts": 1})
    resume(cfg, path=saved)
    assert {path.name for path in saved.parent.glob("*.pth")} == before
    assert (tmp_path / "work" / "epoch_2.pth").is_file()


def test_folders_of_a_kept_number_are_not_deleted(saved, tmp_path):
    def change(checkpoint):
        checkpoint["message_hub"]["runtime_info"]["keep_ckpt_ids"] = [7, 8, 9, 1]

    changed(saved, tmp_path / "work", change)
    (tmp_path / "work" / "epoch_7.pth").mkdir()
    resume(tiny_config(tmp_path / "work", **{"default_hooks.checkpoint.max_keep_ckpts": 1}))
    assert (tmp_path / "work" / "epoch_7.pth").is_dir()


class _Code:
    def __reduce__(self):
        return (Path("executed").touch, ())


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A file that would run code, for a reader that lets it; the environment asks for such one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "hostile.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": _Code()}, path)
    yield path
    assert not Path("executed").exists()


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_every_door_of_mmengine_has_the_safe_reader(address, hostile):
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(address.format(hostile))


def test_load_from_an_address_runs_nothing(hostile, tmp_path, monkeypatch):
    fetched = []

    def download(address):
        fetched.append(address)
        return hostile

    monkeypatch.setattr("acmix.mm.read.download", download)
    with pytest.raises(CheckpointError, match="refused, nothing was run"):
        run(tiny_config(tmp_path / "work", load_from="https://example.org/hostile.pth"))
    assert fetched == ["https://example.org/hostile.pth"]


def test_mmengines_own_runner_gets_no_text_that_it_would_run(saved, tmp_path):
    path = changed(saved, tmp_path / "work", set_at("meta", "config", value=CODE))
    content = CheckpointLoader.load_checkpoint(str(path))
    assert content["meta"]["epoch"] == 1
    assert "config" not in content["meta"]


def test_init_cfg_of_any_module_runs_nothing(hostile, tmp_path):
    init = dict(_delete_=True, type="Pretrained", checkpoint=str(hostile))
    for part in ("backbone", "head"):
        with pytest.raises(CheckpointError, match="refused, nothing was run"):
            run(tiny_config(tmp_path / "work", **{f"model.{part}.init_cfg": init}))


def test_weights_without_a_training_state_are_no_run(saved, tmp_path):
    path = changed(saved, tmp_path / "work", lambda c: c.pop("optimizer"))
    with pytest.raises(InputError, match="has weights but no training state to resume"):
        resume(tiny_config(tmp_path / "work"), path=path)


def test_averages_start_from_weights_of_other_names(saved, tmp_path):
    weights = read(saved)["state_dict"]
    bare = {name.removeprefix("backbone."): w for name, w in weights.items() if "backbone" in name}
    torch.save(bare, tmp_path / "bare.pth")
    cfg = tiny_config(tmp_path / "work", load_from=str(tmp_path / "bare.pth"), custom_hooks=EMA)
    runner = run(cfg, StopHook("before_train_iter", 1))
    hook = next(hook for hook in runner.hooks if hasattr(hook, "ema_model"))
    assert isinstance(runner, ACmixRunner)
    assert isinstance(hook.ema_model.module, nn.Module)
    averages = hook.ema_model.module.state_dict()
    name = "backbone.patch_embed.projection.weight"
    assert torch.equal(averages[name], weights[name])
