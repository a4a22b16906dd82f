"""Bad input ends with one short message and exit code 2, before anything is built."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from acmix import InputError
from acmix.mm import cli
from acmix.mm.explain import unwritable
from acmix.mm.parsers import train_parser
from acmix.mm.runner import ACmixRunner
from acmix.mm.settings import apply_train_flags, load_config
from runs import run, tiny_config
from support import ROOT

SWIN = ROOT / "swin"
VISUALIZER = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])
DIGITS = "configs/acmix-swin-nano_1xb64_digits-32px.py"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")


def message(command, *arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(SWIN, [str(a) for a in arguments])
    assert stopped.value.code == 2
    text = capsys.readouterr().err.strip()
    # Loggers of earlier tests may complain about their closed streams before it.
    message = text.split("\nerror: ")[-1].removeprefix("error: ")
    assert "Traceback" not in message
    return message


def test_missing_config(capsys):
    text = message(cli.train, "configs/acmix-swin-tinny_8xb128_in1k.py", capsys=capsys)
    assert text == (
        "config configs/acmix-swin-tinny_8xb128_in1k.py not found; "
        "did you mean 'acmix-swin-tiny_8xb128_in1k.py'?"
    )


def test_config_with_a_syntax_error(capsys):
    Path("broken.py").write_text("model = dict(\n")
    assert "broken.py" in message(cli.train, "broken.py", capsys=capsys)


def test_missing_data_folder(capsys):
    config = "configs/acmix-swin-tiny_8xb128_in1k.py"
    text = message(cli.train, config, "--cfg-options", "data_root=nowhere", capsys=capsys)
    assert text == (
        "train_dataloader: data folder nowhere/train not found; "
        "give the folder that holds train/ and val/ with --cfg-options data_root=..."
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("No module named 'mmcv._ext'", "mmcv._ext"),
        ("No module named 'mmdet'", "mmdet"),
        ("mmsegmentation is not installed, please install it manually", "mmsegmentation"),
        ("/lib/mmcv/_ext.cpython-311.so: undefined symbol: _ZN3c10", "mmcv/_ext"),
    ],
)
def test_what_detection_needs_comes_with_a_command(text, name, monkeypatch, capsys):
    def fail(path):
        raise ImportError(text)

    monkeypatch.setattr("mmengine.config.Config.fromfile", fail)
    assert message(cli.train, DIGITS, capsys=capsys) == (
        f"{name} can't be imported, which detection and segmentation need; "
        "run 'make mmcv' in the repository's root"
    )


def test_mixed_precision_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message(cli.train, DIGITS, "--amp", capsys=capsys).startswith(
        "optim_wrapper.type=AmpOptimWrapper: mixed precision"
    )


def test_misspelt_data_folder_is_suggested(capsys):
    Path("pets").mkdir()
    config = "configs/acmix-swin-tiny_1xb32_imagefolder.py"
    text = message(cli.train, config, "--cfg-options", "data_root=pet", capsys=capsys)
    assert "did you mean 'pets'?" in text


def test_data_folder_without_classes(capsys):
    for split in ("train", "val"):
        Path("pets", split).mkdir(parents=True)
    config = "configs/acmix-swin-tiny_1xb32_imagefolder.py"
    text = message(cli.train, config, "--cfg-options", "data_root=pets", capsys=capsys)
    assert text == "pets/train: has no class folders; put the images of each class into one"


def test_missing_checkpoint(capsys):
    Path("epoch_12.pth").touch()
    text = message(cli.test, DIGITS, "epoch_2.pth", capsys=capsys)
    assert text == "checkpoint epoch_2.pth not found; did you mean 'epoch_12.pth'?"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "x.txt"], "--out=x.txt: give a name that ends in .pkl or .pickle"),
        (["--out", "no/x.pkl"], "--out=no/x.pkl: its folder does not exist; create it first"),
        (["--out-item", "metrics"], "--out-item=metrics: give the file to write with --out"),
    ],
)
def test_bad_output_file(arguments, expected, capsys):
    assert message(cli.test, DIGITS, "x.pth", *arguments, capsys=capsys) == expected


def test_options_may_be_given_more_than_once():
    args = train_parser().parse_args(
        ["c.py", "--cfg-options", "a=1", "b=2", "--cfg-options", "b=3"]
    )
    assert args.cfg_options == {"a": 1, "b": 3}


def digits_runner(**changes):
    from mmengine.config import Config

    cfg = Config.fromfile(SWIN / DIGITS)
    cfg.work_dir = "work"
    cfg.merge_from_dict(changes)
    return ACmixRunner.from_cfg(cfg)


def test_a_full_disk_keeps_the_previous_checkpoint(monkeypatch):
    runner = digits_runner()
    runner.train_loop  # noqa: B018  builds what a checkpoint holds
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    Path("work", "epoch_1.pth").write_bytes(b"previous")

    def full(*args, **kwargs):
        Path("work", "epoch_1.pth.partial").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmengine.runner.runner.save_checkpoint", full)
    with pytest.raises(InputError, match="no space left to save the checkpoint"):
        runner.save_checkpoint("work", "epoch_1.pth", save_param_scheduler=False)
    assert Path("work", "epoch_1.pth").read_bytes() == b"previous"
    assert not Path("work", "epoch_1.pth.partial").exists()


class _Code:
    def __reduce__(self):
        return (Path("executed").touch, ())


def test_a_checkpoint_that_hides_code_is_refused(capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": _Code()}, "evil.pth")
    text = message(cli.test, DIGITS, "evil.pth", "--work-dir", "work", capsys=capsys)
    assert "evil.pth" in text
    assert not Path("executed").exists()


def test_resuming_from_weights_alone_is_refused(capsys):
    torch.save({"state_dict": {"backbone.a": torch.zeros(1)}}, "weights.pth")
    text = message(
        cli.train, DIGITS, "--resume", "weights.pth", "--work-dir", "work", capsys=capsys
    )
    assert text.startswith("weights.pth: has weights but no training state to resume")


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/x", "loop"])
def test_a_work_dir_that_cannot_be_written(folder, capsys):
    Path("file").touch()
    Path("loop").symlink_to("loop")
    text = message(cli.train, DIGITS, "--work-dir", folder, capsys=capsys)
    assert text.startswith(f"work_dir={folder}: can't be written (")
    assert text.endswith("); give another with --work-dir")


def test_a_read_only_work_dir(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    text = message(cli.train, DIGITS, "--work-dir", "work", capsys=capsys)
    assert text.startswith("work_dir=work: can't be written (Read-only file system)")


@pytest.mark.parametrize(
    "value", ["a=[dict(b='X',c=1)]", "a=[dict(b='X')]", "a=[{'b':1,'c':2}]", "a=[1,(2]"]
)
def test_options_that_are_no_lists(value, capsys):
    with pytest.raises(SystemExit):
        train_parser().parse_args(["c.py", "--cfg-options", value])
    assert "give key=value, lists as [a,b]; dictionaries by a key" in capsys.readouterr().err


def test_what_needs_a_gpu_is_refused_without_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--cfg-options", "optim_wrapper.type=AmpOptimWrapper"]
    assert "needs a GPU" in message(cli.train, DIGITS, *options, capsys=capsys)
    text = message(cli.train, DIGITS, "--cfg-options", "sync_bn=mmcv", capsys=capsys)
    assert text == "sync_bn=mmcv: mmcv's layer needs a GPU; give sync_bn=torch"


@pytest.mark.parametrize(
    "option",
    [
        "strategy.type=FSDPStrategy",
        "model_wrapper_cfg.type=MMFullyShardedDataParallel",
        "optim_wrapper.type=DeepSpeedOptimWrapper",
        "optim_wrapper.optimizer.type=ZeroRedundancyOptimizer",
    ],
)
def test_sharding_is_refused(option, capsys):
    text = message(cli.train, DIGITS, "--cfg-options", option, capsys=capsys)
    assert text.startswith(f"{option}: sharding a model or its optimiser is not supported, as")


def test_a_name_of_no_synchronised_batch_norm(capsys):
    text = message(cli.train, DIGITS, "--cfg-options", "sync_bn=yes", capsys=capsys)
    assert text == "sync_bn=yes: choose from torch, mmcv"


def test_a_learning_rate_that_is_for_no_known_batch(capsys):
    text = message(cli.train, DIGITS, "--auto-scale-lr", capsys=capsys)
    assert text == (
        "--auto-scale-lr: the config does not say which batch size its learning rate is for; "
        "add --cfg-options auto_scale_lr.base_batch_size=..."
    )


def test_the_flag_scales_the_learning_rate():
    option = "auto_scale_lr.base_batch_size=32"
    args = train_parser().parse_args([DIGITS, "--auto-scale-lr", "--cfg-options", option])
    cfg = load_config(SWIN, args)
    apply_train_flags(cfg, args)
    assert cfg.auto_scale_lr == dict(base_batch_size=32, enable=True)


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EROFS, errno.EIO])
def test_any_reason_against_writing_a_checkpoint_is_told(number, monkeypatch):
    text = str(unwritable(Path("work/epoch_1.pth"), OSError(number, os.strerror(number))))
    assert text.startswith("work/epoch_1.pth: the checkpoint can't be saved")
    assert os.strerror(number) in text


def test_a_work_dir_that_is_removed_during_the_run(tmp_path):
    class Remove(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            shutil.rmtree(runner.work_dir, ignore_errors=True)

    cfg = tiny_config(tmp_path / "work")
    cfg.visualizer = VISUALIZER
    with pytest.raises(InputError, match="work_dir=.*: it was removed during the run"):
        run(cfg, Remove())
