"""Peak memory of the kernels grows with the input, not with the window."""

import os
import subprocess
import sys
import textwrap

import pytest

from acmix.backends.cpu import library
from support import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(library.problem()), reason="no CPU library"),
]

SCRIPT = """
    import pathlib, sys, torch, acmix
    op, size, kernel, backward = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(2)
    def peak():  # that of getrusage begins with the parent's
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    def call(size, kernel):
        options = dict(kernel_size=kernel, backend="cpu")
        if op == "attention":
            inputs = [torch.rand(2, 4, 16, size, size, requires_grad=bool(backward))] * 3
            function = acmix.sliding_window_attention
        elif op == "path":
            inputs = [torch.rand(2, 192, size, size, requires_grad=bool(backward))]
            inputs += [torch.rand(kernel**2, 12), torch.rand(64, kernel**2, kernel, kernel)]
            function, options = acmix.convolution_path, dict(backend="cpu")
        else:
            inputs = [torch.rand(2, 64, size, size, requires_grad=bool(backward))]
            inputs.append(torch.rand(2, 8, kernel**2, size, size, requires_grad=bool(backward)))
            function = acmix.neighbourhood_aggregation
        before = peak()
        out = function(*inputs, **options)
        if backward:
            out.backward(out.detach())
        return (peak() - before) / (inputs[0].numel() * 4)
    call(16, kernel)  # torch's own start-up is not the operator's
    print(call(size, kernel))
"""


def peak_in_inputs(op, size, kernel, backward):
    """Growth of the resident set during one call, in sizes of q or of the values."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "core")}
    arguments = [op, str(size), str(kernel), str(int(backward))]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return float(ran.stdout)


@pytest.mark.parametrize("backward", [False, True])
def test_attention_needs_no_copy_of_the_windows(backward):
    # Output and lse; going back also dq, dk, dv, their sum and a head's scratch a thread.
    bound = 9 if backward else 2.5
    for size in (112, 224):
        for kernel in (3, 7):
            assert peak_in_inputs("attention", size, kernel, backward) < bound


def test_aggregation_needs_no_copy_of_the_windows():
    # Forward: the output alone. Going back the gradient of the weights has k² / 8 values' sizes.
    for size in (112, 224):
        assert peak_in_inputs("aggregation", size, 7, backward=False) < 2
        assert peak_in_inputs("aggregation", size, 7, backward=True) < 49 / 8 + 6


def test_convolution_path_needs_no_map_for_every_tap():
    # A third for the output, and the maps channels last; going back also their gradient in both
    # memory formats and the output's.
    for size in (112, 224):
        for kernel in (3, 5):
            assert peak_in_inputs("path", size, kernel, backward=False) < 2.5
            assert peak_in_inputs("path", size, kernel, backward=True) < 5
