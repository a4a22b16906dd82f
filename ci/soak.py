"""Kill training runs, and feed hostile files to every door, for as long as one likes.

``make soak`` runs the short form. Every killed run is resumed and must end, bit by bit, as one
that was not killed. Every changed file must be refused with a reason, or give the weights that
were saved.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from mmengine.runner.checkpoint import CheckpointLoader  # noqa: E402

from acmix import InputError, load_released  # noqa: E402
from hostile import mutations  # noqa: E402
from kills import KillAtFileOperation, KillAtRandom, run_until_killed  # noqa: E402
from runs import (  # noqa: E402
    QuickRunner,
    StopHook,
    Stopped,
    assert_same_end,
    read,
    resume,
    run,
    tiny_config,
    unformatted_configs,
)

LAST = "epoch_2.pth"
LIMIT_SECONDS = 5


def main() -> None:
    """Run both parts and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="kills at random moments")
    parser.add_argument("--operations", type=int, default=12, help="kill at every n-th")
    parser.add_argument("--files", type=int, default=30, help="changed files")
    parser.add_argument("--only", choices=["kill", "fuzz"], help="one of the two parts")
    parser.add_argument("--seed", type=int, default=0, help="of moments, changes and operations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in (kill, fuzz):
        if args.only in (None, part.__name__):
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder), args)


def kill(folder: Path, args: argparse.Namespace) -> None:
    """Kill runs at random moments and at file operations, and resume them until they end."""
    run(tiny_config(folder / "first"))  # which takes longer than those that are timed
    for keep in (1, 3):
        changes = {"default_hooks.checkpoint.max_keep_ckpts": keep}
        reference, start = folder / f"whole_{keep}", time.monotonic()
        run(tiny_config(reference, **changes))
        longest = time.monotonic() - start
        draw, killed = random.Random(args.seed), 0
        while killed < (args.kills + 1) // 2:
            moment = KillAtRandom(draw.random(), longest)
            killed += survive(folder / "run", reference, changes, moment)
        print(f"keeping {keep}: {killed} kills at random moments, nothing lost", flush=True)
        count, killed = 1 + args.seed % args.operations, 0
        while survive(folder / "run", reference, changes, KillAtFileOperation(count)):
            count, killed = count + args.operations, killed + 1
        print(f"keeping {keep}: {killed} kills at file operations, nothing lost", flush=True)


def survive(work_dir: Path, reference: Path, changes: dict, moment) -> bool:
    """Kill a run once, read all of its files, and let it come to its end; whether it was killed."""
    shutil.rmtree(work_dir, ignore_errors=True)
    killed = run_until_killed(tiny_config(work_dir, **changes), moment)
    for path in work_dir.glob("*.pth"):
        read(path)
    runner = resume(tiny_config(work_dir, **changes))
    assert_same_end(work_dir, reference, LAST)
    best = Path(runner.message_hub.get_info("best_ckpt"))
    assert best.is_file(), f"{best} is lost"
    assert best.parent == work_dir
    assert not list(work_dir.glob("*.partial"))
    assert len(list(work_dir.glob("best_*.pth"))) == 1
    return killed


def fuzz(folder: Path, args: argparse.Namespace) -> None:
    """Give changed checkpoints to every door, each file in a process of its own."""
    run(tiny_config(folder / "saved"))
    saved = folder / "saved" / LAST
    weights = read(saved)["state_dict"]
    outcomes: Counter = Counter()
    doors = all_doors(folder)
    os.chdir(folder)
    for number, (name, content) in enumerate(mutations(saved, args.seed, args.files)):
        path = folder / f"{number}.pth"
        path.write_bytes(content)
        for door, enter in doors.items():
            with unformatted_configs():
                outcomes[door, in_a_child(door, name, path, enter, weights)] += 1
        path.unlink()
    for (door, outcome), count in sorted(outcomes.items()):
        print(f"{door}: {count} {outcome}")
    assert not Path("executed").exists(), "a file ran code"


def in_a_child(door: str, name: str, path: Path, enter, weights: dict) -> str:
    """How a door takes a file: ``refused`` or ``intact``; anything else ends the test."""
    part = "backbone" if door == "init_cfg" else ""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(10 * LIMIT_SECONDS)
        code = 3
        try:
            found = enter(path)
            same = all(torch.equal(found[n], w) for n, w in weights.items() if part in n)
            code = 0 if same else 4
        except InputError:
            code = 2
        except BaseException:
            print(f"{door}, {name}: {traceback.format_exc()}", flush=True)
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    taken, memory = time.monotonic() - start, usage.ru_maxrss * 1024 - resident
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 2), f"{door}, {name}: ended with {code}; the file is {path}"
    assert taken < LIMIT_SECONDS, f"{door}, {name}: {taken:.1f} s"
    assert memory < 4 * path.stat().st_size + (200 << 20), f"{door}, {name}: {memory:,} bytes"
    return "refused" if code == 2 else "intact"


def all_doors(folder: Path) -> dict[str, Callable[[Path], dict]]:
    """Every way into the project, by name, with the weights that are found behind it.

    The runner is built once and used in forks.
    """
    cfg = tiny_config(folder / "work", **{"train_cfg.max_epochs": 3})
    runner = QuickRunner.from_cfg(cfg)
    runner.register_hook(StopHook("before_train_iter", 1))
    model = runner.model
    _ = runner.train_loop, runner.val_loop, runner.test_loop  # their data is read once

    def train(path: Path, *, resume: bool) -> dict:
        runner._resume, runner._load_from = resume, str(path)
        with suppress(Stopped):
            runner.train()
        return model.state_dict()

    def test(path: Path) -> dict:
        runner._load_from = str(path)
        runner.test()
        return model.state_dict()

    def init(path: Path) -> dict:
        model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(path))
        model.backbone.init_weights()
        return model.state_dict()

    return {
        "load_released": load_released,
        "MMEngine's reader": lambda path: CheckpointLoader.load_checkpoint(str(path))["state_dict"],
        "--resume": lambda path: train(path, resume=True),
        "load_from": lambda path: train(path, resume=False),
        "init_cfg": init,
        "test": test,
    }


if __name__ == "__main__":
    main()
