"""The paper's Tables 6 and 7 on small scans of digits: ``make ablation``.

Trains small ResNets and Swins of every mix and shift mode on 10, 30, 100 and all images a class,
for two lengths and five seeds, each on one thread, as many at once as there are cores. Every
finished run is a line of ``results.csv`` in the output folder; a run that was killed is done again
by the same command. In the end the tables and curves of all its runs are written beside it.
"""

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "core" / "benchmarks"))

import mmpretrain  # noqa: E402
import torch  # noqa: E402
from grid import SEEDS, Run, all_runs  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from plot import draw_all  # noqa: E402
from results import Results, read_rows  # noqa: E402
from summary import collect, render  # noqa: E402
from timing import device_name  # noqa: E402
from training import CONFIGS, recipe, train  # noqa: E402

import acmix  # noqa: E402
from acmix.checks import check_positive  # noqa: E402
from acmix.errors import InputError  # noqa: E402
from acmix.mm.explain import input_errors_explained  # noqa: E402
from acmix.mm.files import write_text  # noqa: E402

OUTPUT = ROOT / "build" / "ablation"


@input_errors_explained()
def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that the output folder does not have yet."""
    options = _parse(argv)
    check_positive("--seeds", options.seeds)
    check_positive("--jobs", options.jobs)
    runs = all_runs(options.seeds, options.only)
    with Results(options.out / "results.csv", recipe()) as results:
        missing = [run for run in runs if run.key not in results.done]
        print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done", flush=True)
        _make(missing, options.jobs, results)
    rows = read_rows(results.path)
    write_text(options.out / "tables.md", render(rows) + "\n")
    curves = draw_all(collect(rows), options.out)
    print(*(results.path, options.out / "tables.md", *curves), sep="\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder of results.csv")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many ({SEEDS})")
    parser.add_argument(
        "--jobs", type=int, default=_cores(), help="runs at once, a core each (all cores)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="leave out all others: model=swin mix=attention,convolution shift=fixed images=10,all "
        "steps=45",
    )
    return parser.parse_args(argv)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _make(runs: list[Run], jobs: int, results: Results) -> None:
    """Train in processes of their own; only this one writes."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a process starts
    context, start = multiprocessing.get_context("spawn"), time.monotonic()
    pool = ProcessPoolExecutor(jobs, context, _start_worker)
    try:
        futures = {pool.submit(_train, run): run for run in runs}
        for count, future in enumerate(as_completed(futures), start=1):
            run, outcome = futures.pop(future), future.result()
            results.append(run, outcome)
            minutes = (time.monotonic() - start) / 60
            left = minutes / count * (len(runs) - count)
            print(f"{' '.join(run.key)}: {outcome['top1']} %, {left:.0f} min left", flush=True)
    except BrokenProcessPool as error:
        remedy = "give the same command again, with fewer --jobs if memory was short"
        raise InputError(f"--jobs={jobs}: a process of a run was killed; {remedy}") from error
    finally:
        pool.shutdown(cancel_futures=True)  # of none of which the result would be kept


def _start_worker() -> None:
    """One thread; and end with the process that started this one, which may be killed."""
    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel("ERROR")  # it would list every parameter
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train(run: Run) -> dict[str, str]:
    versions = f"mmpretrain {mmpretrain.__version__}, acmix {acmix.__version__}"
    return train(run) | dict(config=CONFIGS[run.model], device=device_name(), versions=versions)


if __name__ == "__main__":
    main()
