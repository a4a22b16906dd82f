"""Peak memory of the kernels grows with the input, not with the window."""

import pytest

from forks import run_python
from operator_contract import needs_kernels
from support import ROOT

pytestmark = [pytest.mark.slow, needs_kernels]

# In a process of its own, whose peak the kernel counts: what torch sees does not show the scratch
# of compiled kernels.
SCRIPT = """
import pathlib, sys, torch
sys.path.append(sys.argv[1])
import operators

def peak():  # that of getrusage begins with the parent's
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def call(size):
    case = operators.Case((size, size), 7, batch=2, heads=4, depth=16)
    inputs = [torch.rand(shape, requires_grad=True) for shape in kind.shapes(case).values()]
    kept = inputs[0].numel() * 4
    before = peak()
    out = kind.on(case, "cpu")(*inputs)
    forward = peak()
    out.backward(out.detach())
    return (forward - before) / kept, (peak() - before) / kept

kind = getattr(operators, sys.argv[2])()
torch.set_num_threads(2)
call(16)  # torch's own start-up is not the operator's
print(*call(224))
"""


@pytest.mark.parametrize(
    ("operator", "forward", "backward"),
    [
        # Output, lse and the keys less the position; going back also dq, dk, dv, the sum of dk and
        # a head's scratch a thread.
        ("Attention", 2.5, 7),
        # The output. Going back, the gradient of the weights has k² / 16 values' sizes.
        ("Aggregation", 1.5, 49 / 16 + 3),
        # k² outputs; their gradient is the caller's.
        ("Difference", 50, 52),
        # A third for the output, and the maps channels last; going back also their gradient in
        # both memory formats and the output's.
        ("Convolution", 2, 4.5),
        # Two outputs, and again in one tensor here, of a third each; going back also the gradients
        # of both operators, dq, dk and dv, and the sum, which torch makes in place or not.
        ("Paths", 3, 6.5),
        # A third for the output, and the maps channels last; going back also their gradient in
        # both memory formats and the output's.
        ("Mix", 2, 4.5),
    ],
)
def test_no_map_is_copied_for_every_window_pixel(operator, forward, backward, tmp_path):
    path = str(ROOT / "tests")
    ran = run_python("-c", SCRIPT, path, operator, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    measured = tuple(map(float, ran.stdout.split()))
    assert measured[0] < forward, measured
    assert measured[1] < backward, measured
