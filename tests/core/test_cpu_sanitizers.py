"""The CPU kernels under AddressSanitizer, UBSan and ThreadSanitizer, on a list of shapes."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from acmix.backends.cpu import build, library

DRIVER = Path(__file__).with_name("cpu_driver.cpp")
# Tiles are arrays here: the sanitizers see nothing of what instructions for them do.
TILES = ["-DACMIX_WIDE", "-DACMIX_EMULATED", "-DACMIX_AMX=baseline"]
VARIANTS = ["baseline", "avx2", "avx512", "tiles"]


def run_sanitized(tmp_path, sanitizer, variant, arguments):
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    tiled, options, kernels = variant == "tiles", [], build.KERNELS
    if tiled:
        options, kernels = TILES, (*kernels, build.TILED)
    elif variant != "baseline":
        if library.problem() or variant not in library.load().isas:
            pytest.skip(f"this machine ({platform.machine()}) can't run {variant}")
        options = build._X86_VARIANTS[variant]
    binary = tmp_path / "driver"
    sources = [DRIVER, *(build.SOURCE / name for name in ("dispatch.cpp", *kernels))]
    # To optimise takes longer than to run, and may leave out what a sanitizer would see.
    command = [*compiler, "-std=c++17", "-O0", "-g1", "-pthread", "-Wno-psabi"]
    command += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", *options]
    command += [f"-I{build.SOURCE}", *map(str, sources), "-o", str(binary)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "cannot find -l" in built.stderr or "unable to find library" in built.stderr:
        pytest.skip(f"the compiler has no -fsanitize={sanitizer} here")
    assert built.returncode == 0, built.stderr[-3000:]
    # What is too large for memory must come back as the kernels' own error.
    options = {f"{name}_OPTIONS": "allocator_may_return_null=1" for name in ("ASAN", "TSAN")}
    env = {**os.environ, **options}
    ran = subprocess.run([str(binary), *arguments], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_keep_to_their_memory(tmp_path, variant):
    run_sanitized(tmp_path, "address,undefined", variant, ["1", "2", "all"])


@pytest.mark.slow
def test_kernels_have_no_data_race(tmp_path):
    # Threads share the work of doubles as that of floats.
    run_sanitized(tmp_path, "thread", "tiles", ["3", "2", "floats"])
