"""The CUDA kernels on a device, tested and timed: ``make gpu OUT=folder``.

Needs torch, CuPy and pytest and takes at most eight minutes: the tests of the kernels, one process
for each dtype, then timings by CUDA events, of operators and of networks. Everything goes to the
folder as it comes: ``tests-*.log`` and ``gpu.json``, whose rows have milliseconds of sides that
alternate. Where there is no device the same code runs on small sizes on the CPU, the kernels on an
emulator where g++ is at hand: a rehearsal, whose timings are left out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import gpu_cases
import torch
from gpu_clock import Clock

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 450
TEST_SECONDS = 200
# Tests by what their names have in them, so that each process compiles kernels of its own.
GROUPS = {
    "float32": "float32",
    "float64": "float64",
    "float16": "float16 and not bfloat16",
    "bfloat16": "bfloat16",
    "others": "not float",
}


class Report:
    """``gpu.json``, written anew after every row.

    Args:
        folder: Where it goes.
        device: What the figures belong to.
    """

    def __init__(self, folder: Path, device: dict) -> None:
        self.path = folder / "gpu.json"
        self.content: dict = dict(device=device, tests={}, rows=[], failed=[], left_out=[])

    def add(self, kind: str, entry: object) -> None:
        """Append to ``rows``, ``failed`` or ``left_out``."""
        self.content[kind].append(entry)
        print(kind, json.dumps(entry), flush=True)
        self.write()

    def write(self) -> None:
        """Put all there is on the disk."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


def describe_device() -> dict:
    """The device and the versions that figures belong to."""
    found = dict(torch=torch.__version__, python=platform.python_version())
    if not torch.cuda.is_available():
        return dict(name="none", rehearsal="the code on a CPU, small sizes, no timings", **found)
    properties = torch.cuda.get_device_properties(0)
    return dict(
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory_gib=round(properties.total_memory / 2**30, 1),
        cuda=torch.version.cuda,
        tf32=dict(
            matmul=torch.backends.cuda.matmul.allow_tf32, cudnn=torch.backends.cudnn.allow_tf32
        ),
        **found,
    )


def run_tests(folder: Path, seconds: float) -> dict[str, str]:
    """Last line of every group of tests; without a device one group, which emulates."""
    groups = GROUPS if torch.cuda.is_available() else {"all": "small or autocast or same"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    command += ["tests/cuda/test_gpu.py", "-k"]
    running = {}
    for name, expression in groups.items():
        log = (folder / f"tests-{name}.log").open("w")
        running[name] = subprocess.Popen(
            [*command, expression], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    end, results = time.monotonic() + seconds, {}
    for name, process in running.items():
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines = (folder / f"tests-{name}.log").read_text().strip().splitlines()
        results[name] = f"exit {process.returncode}: {lines[-1] if lines else 'no output'}"
        print(f"tests, {name}: {results[name]}", flush=True)
    return results


def main() -> int:
    """Test, time, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--no-tests", action="store_true", help="time alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + SECONDS
    report = Report(options.out, describe_device())
    print(json.dumps(report.content["device"]), flush=True)
    if not options.no_tests:
        report.content["tests"] = run_tests(options.out, TEST_SECONDS)
    report.write()
    failed = [text for text in report.content["tests"].values() if not text.startswith("exit 0")]
    torch.backends.cudnn.benchmark = True
    clock = Clock()
    for case in gpu_cases.all_cases(clock, report):
        if time.monotonic() > end:
            report.add("left_out", f"{case.name}: the time was up")
            continue
        try:
            case.run()
        except Exception as error:  # one case must not take the others with it
            report.add("failed", f"{case.name}: {type(error).__name__}: {str(error)[:500]}")
    print(f"{len(report.content['rows'])} rows in {report.path}")
    return 1 if failed or report.content["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
