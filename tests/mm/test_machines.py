"""Launches by make and SLURM: machines are processes of this one, and workers are killed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

from acmix.mm.launch import RECORD, LaunchRecord, launcher
from runs import StopHook, assert_same_end, copied, run, tiny_config
from support import ROOT, free_port

# Three epochs of two iterations in two processes; a worker is killed in the second one.
CONFIG = f"""
_base_ = "{ROOT}/swin/configs/acmix-swin-nano_1xb64_digits-32px.py"
custom_imports = dict(imports=["acmix_swin", "kills"])
model = dict(
    backbone=dict(arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 4])),
    head=dict(in_channels=32),
)
train_cfg = dict(max_epochs=3)
train_dataloader = dict(batch_size=4, dataset=dict(indices=16))
val_dataloader = dict(dataset=dict(indices=8))
param_scheduler = None
default_hooks = dict(kill=dict(type="KillHook", iteration=3, trace={{trace}}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a shell in which everything is installed, for processes without a GPU."""
    venv = tmp_path_factory.mktemp("venv")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    (venv / ".installed").touch()
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "VENV": str(venv),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(paths),
        "MASTER_PORT": free_port(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def start(folder, environment, *settings, kill=False):
    """The training by make into ``folder/work``, in a process of its own."""
    config, trace = write_config(folder, kill)
    arguments = [f"CONFIG={config}", f"ARGS=--work-dir {folder}/work", *settings]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(
        ["make", "-C", "swin", "train", *arguments], cwd=ROOT, env=environment, **pipes
    )


def write_config(folder, kill):
    """The config, in a folder, and the file that says that a worker was killed."""
    config, trace = folder / "tiny.py", folder / "killed"
    config.write_text(CONFIG.format(trace=repr(str(trace))))
    if not kill:
        trace.touch()
    return config, trace


def finish(*processes):
    """What they print, once all of them have ended well."""
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-5000:]
    return "\n".join(outputs)


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """Work dir of a run in two processes of one launch."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, environment, "GPUS=2"))
    return folder / "work"


@pytest.mark.slow
@pytest.mark.thorough
def test_two_machines_train_as_two_processes_of_one(whole, environment, tmp_path):
    settings = ("NNODES=2", "MASTER_ADDR=127.0.0.1")
    finish(*[start(tmp_path, environment, *settings, f"NODE_RANK={n}") for n in (0, 1)])
    assert_same_end(tmp_path / "work", whole, "epoch_3.pth")


def work_dir_of_an_earlier_run(whole, folder):
    """One with a checkpoint that the next run doesn't resume."""
    work_dir = folder / "work"
    work_dir.mkdir()
    shutil.copy(whole / "epoch_3.pth", work_dir / "epoch_2.pth")
    return work_dir


@pytest.mark.slow
@pytest.mark.thorough
def test_killed_workers_go_on_where_they_were(whole, environment, tmp_path):
    work_dir = work_dir_of_an_earlier_run(whole, tmp_path)
    output = finish(start(tmp_path, environment, "GPUS=2", "MAX_RESTARTS=1", kill=True))
    assert (tmp_path / "killed").exists()
    assert f"Resuming from {work_dir}/epoch_1.pth" in output
    assert_same_end(work_dir, whole, "epoch_3.pth")


SRUN = """#!/bin/bash
# One task a machine; the first to fail is what the job ends with.
while [[ $1 == -* ]]; do shift; done
for ((n = 0; n < SLURM_JOB_NUM_NODES; n++)); do SLURM_NODEID=$n "$@" & done
for task in $(jobs -p); do wait "$task" || failed=$?; done
exit "${failed:-0}"
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[1-2]" ]] && printf '127.0.0.1\\n127.0.0.2\\n'
"""


def batch_job(folder, environment, srun, *arguments, **variables):
    """Run the batch file as SLURM would, on two machines; its standard output."""
    for name, script in (("srun", srun), ("scontrol", SCONTROL)):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    job = {
        **environment,
        "PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}",
        "SLURM_JOB_ID": "12345678",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        **variables,
    }
    command = ["bash", "docs/train/train.sbatch", "swin", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=job, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    return result.stdout


@pytest.mark.slow
def test_the_batch_file_trains_on_two_machines_and_survives_a_kill(whole, environment, tmp_path):
    config, trace = write_config(tmp_path, kill=True)
    work_dir = work_dir_of_an_earlier_run(whole, tmp_path)
    output = batch_job(tmp_path, environment, SRUN, config, "--work-dir", work_dir)
    assert trace.exists()
    assert f"Resuming from {work_dir}/epoch_1.pth" in output
    assert_same_end(work_dir, whole, "epoch_3.pth")


@pytest.mark.parametrize(("count", "flags"), [("0", "--amp"), ("2", "--amp --resume")])
def test_a_job_that_slurm_starts_again_goes_on(count, flags, environment, tmp_path):
    print_settings = "#!/bin/bash\necho $MASTER_ADDR:$MASTER_PORT; printf '%s\\n' \"${@: -3}\"\n"
    variables = dict(SLURM_RESTART_COUNT=count, MASTER_PORT="")
    output = batch_job(tmp_path, environment, print_settings, "config.py", "--amp", **variables)
    assert output.splitlines() == ["127.0.0.1:25678", "swin", "config.py", flags]


def test_the_batch_file_is_on_its_page():
    page = (ROOT / "docs" / "train" / "cluster.md").read_text()
    assert (ROOT / "docs" / "train" / "train.sbatch").read_text() in page


def problem(**settings):
    spec = importlib.util.spec_from_file_location("check_launch", ROOT / "ci" / "check_launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = ("NODE_RANK", "MASTER_ADDR")
    defaults = dict(GPUS="1", NNODES="1", MASTER_PORT="29500", MAX_RESTARTS="0")
    return module.problem({**dict.fromkeys(names, ""), **defaults, **settings})


TWO = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="host")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(NNODES="2"), "NODE_RANK is empty: give each machine a number of its own, 0 to 1"),
        (dict(NODE_RANK="1"), "NODE_RANK=1: with NNODES=1, give 0"),
        ({**TWO, "NODE_RANK": "2"}, "NODE_RANK=2: with NNODES=2, give 0 to 1"),
        ({**TWO, "NODE_RANK": "-1"}, "NODE_RANK=-1: with NNODES=2, give 0 to 1"),
        ({**TWO, "MASTER_ADDR": ""}, "MASTER_ADDR is empty: give the name or address"),
        ({**TWO, "MASTER_PORT": "65536"}, "MASTER_PORT=65536: give a free port"),
        (dict(NNODES="1:2"), "NNODES=1:2: give the number of machines"),
        (dict(NNODES="0"), "NNODES=0: give the number of machines"),
        (dict(GPUS="all"), "GPUS=all: give the number of processes"),
        (dict(MAX_RESTARTS="-1"), "MAX_RESTARTS=-1: give a whole number"),
    ],
)
def test_settings_that_name_no_launch(settings, expected):
    assert problem(**settings).startswith(expected)


@pytest.mark.parametrize("settings", [{}, TWO, dict(GPUS="8", MAX_RESTARTS="3")])
def test_settings_that_name_one(settings):
    assert problem(**settings) is None


def test_a_wrong_launch_ends_before_anything_is_installed(tmp_path):
    command = ["make", "-C", "swin", "train", "NNODES=2", "NODE_RANK=0", f"VENV={tmp_path}/venv"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: MASTER_ADDR is empty: give the name or address of")
    assert not (tmp_path / "venv").exists()


def checkpoint(folder, name, time):
    path = folder / name
    path.touch()
    os.utime(path, ns=(time, time))
    return path


def test_a_launch_knows_what_it_wrote(tmp_path):
    old, replaced = (checkpoint(tmp_path, f"epoch_{n}.pth", 1) for n in (1, 2))
    assert LaunchRecord(tmp_path).enter(["a", "b"], [old, replaced]) is None
    assert LaunchRecord(tmp_path).enter(["a", "b"], [old, replaced]) == set()
    checkpoint(tmp_path, "epoch_2.pth", 2)
    new = checkpoint(tmp_path, "epoch_3.pth", 2)
    # A machine was replaced, then the other.
    for launchers in (["a", "c"], ["d", "c"]):
        written = LaunchRecord(tmp_path).enter(launchers, [old, replaced, new])
        assert written == {"epoch_2.pth", "epoch_3.pth"}
    assert LaunchRecord(tmp_path).enter(["a", "b"], [old, replaced, new]) is None


@pytest.mark.slow
def test_only_a_launch_that_starts_again_goes_on(tmp_path, monkeypatch):
    run(tiny_config(tmp_path / "whole"))
    copied(tmp_path / "whole", "epoch_2.pth", tmp_path / "work")
    cfg = tiny_config(tmp_path / "work")

    def start_at(name, *hooks):
        monkeypatch.setattr("acmix.mm.runner.launcher", lambda: name)
        return run(cfg, *hooks).resumed_from

    assert start_at("first", StopHook("before_train_iter", 2)) is None
    # It wrote nothing so far.
    assert start_at("first", StopHook("before_train_iter", 5)) is None
    assert start_at("second", StopHook("before_train_iter", 5)) is None
    assert start_at("second") == str(tmp_path / "work" / "epoch_1.pth")
    assert_same_end(tmp_path / "work", tmp_path / "whole", "epoch_2.pth")


@pytest.mark.parametrize("text", ["", "[]", '{"launchers": 1}', '{"launchers": ["a"]}', "\0"])
def test_a_damaged_record_is_that_of_another_launch(text, tmp_path):
    (tmp_path / RECORD).write_text(text)
    assert LaunchRecord(tmp_path).enter(["a"], []) is None
    assert json.loads((tmp_path / RECORD).read_text())["launchers"] == ["a"]


def test_only_workers_have_a_launcher(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launcher() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    mine = launcher()
    assert mine == launcher()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, launcher().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode() != mine
