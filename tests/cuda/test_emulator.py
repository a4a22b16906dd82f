"""The emulator itself: it must find planted bugs, and round as the device does."""

import pytest
import torch

import cuda_emulator
from acmix.backends.cuda import launcher, tiles
from operators import Aggregation, Attention, Case, Convolution, Difference, Paths
from support import gradients

# Where the first of several barriers stands in the kernels' text, and other places for bugs.
_FILL = (
    "values[c * size + i] = at < 0 ? A(0) : A(load(map + Offset(c) * pixels + at));\n        }\n"
)
_BARRIER = "        __syncthreads();\n"
_BUGS = {
    "no barrier after the fill": (_FILL + _BARRIER, _FILL, "uninitialised read|race: "),
    "no barrier before the fill": (
        _BARRIER + "        const int thread",
        "        const int thread",
        "uninitialised read|race: ",
    ),
    "divergent barrier": (
        _FILL + _BARRIER,
        _FILL + "        if (threadIdx.x > 0)\n" + _BARRIER + "        else\n" + _BARRIER,
        "divergent barrier",
    ),
    "barrier after an exit": (
        "    const Offset plane = tile.plane;",
        "    if (!valid[0]) return;\n    const Offset plane = tile.plane;",
        "have left the kernel",
    ),
    "read past the map": (
        "if (t >= 0 && t < size) return t;",
        "if (t >= 0) return t;",
        "out of bounds: read",
    ),
    "write past the map": (
        "store(out + Offset(c0 + c)",
        "store(out + 1 + Offset(c0 + c)",
        "out of bounds: write|race: write after write",
    ),
    "every thread writes": (
        "valid[r] = tile.active && y < out_h && x0 + int(threadIdx.x) < out_w;",
        "valid[r] = true;",
        "race: write after write",
    ),
    "past the shared memory": (
        "values = all + threadIdx.z * chunk * size;",
        "values = all + threadIdx.z * chunk * size + 7;",
        "out of bounds: write of 4 bytes in shared memory",
    ),
    "uninitialised shared memory": (
        "values[c * size + i] = at",
        "if (i > 3) values[c * size + i] = at",
        "uninitialised read: shared",
    ),
    "past an array": (
        "A top = -infinity(), total = 0;",
        "A top = weight[r][K * K - 1 + threadIdx.x], total = 0;",
        "array index out of bounds",
    ),
}


@pytest.fixture(autouse=True)
def _needs_the_emulator(emulated):
    pass


def run(operator, case):
    inputs = operator.inputs(case, torch.float32)
    return gradients(operator.on(case, "cuda"), *inputs)


def run_attention():
    # Two tiles of nine columns leave a column of threads idle; 12 channels make two chunks.
    run(Attention(), Case((9, 17), 5, batch=1, heads=2, depth=12))


@pytest.mark.parametrize("bug", list(_BUGS))
def test_planted_bug_is_reported(emulate, bug):
    old, new, message = _BUGS[bug]

    def plant(text):
        assert old in text
        return text.replace(old, new, 1)

    emulate(check=True, edit=plant)
    with pytest.raises(cuda_emulator.KernelError, match=message) as raised:
        run_attention()
    if "barrier" not in message:
        assert "line " in str(raised.value)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_kernels_are_clean_in_check_mode(emulate, monkeypatch, order):
    emulate(check=True, order=order)
    monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", 1)  # Several heads in a block.
    run_attention()
    for window in (dict(stride=2), dict(kernel_size=9), dict(dilation=2)):
        run(Attention(), Case((7, 17), batch=1, depth=18, **window))
    run(Attention(), Case((2, 5), batch=1, depth=18))
    for reflect in (True, False):
        case = Case((9, 11), stride=2, batch=1, heads=2, depth=10, reflect=reflect)
        run(Aggregation(), case)
        run(Difference(), case)
    for window in (dict(), dict(stride=2), dict(stride=3, kernel_conv=5)):
        for heads in (2, 5):
            run(Convolution(), Case((9, 11), batch=1, heads=heads, depth=3, **window))
    for window in (dict(), dict(stride=2), dict(dilation=2)):
        run(Paths(), Case((9, 11), 3, heads=2, depth=3, **window))


def test_arguments_of_wrong_number_or_type_are_refused():
    q = torch.zeros(1, 1, 2, 4, 4)
    name = "difference_grad_a<float, 3>"
    with pytest.raises(cuda_emulator.KernelError, match="2 arguments, the kernel takes 9"):
        launcher.launch("difference", name, 1, (32, 1, 1), (q, q))
    sizes = (4, 4, 4, 4, 3, 1, 1)
    with pytest.raises(cuda_emulator.KernelError, match=r"argument 1 is torch\.float64"):
        launcher.launch("difference", name, 1, (32, 1, 1), (q, q.double(), *sizes))
    runtime = cuda_emulator.EmulatedRuntime()
    address = runtime.address(q)
    function = runtime.module("difference", name, q).get_function(name)
    with pytest.raises(cuda_emulator.KernelError, match="argument 2 is <class 'int'>"):
        function((1, 1, 1), (32, 1, 1), (address, address, *sizes))


@pytest.mark.parametrize(
    ("dtype", "kind", "to_float", "from_float"),
    [
        (torch.float16, "__half", "__half2float", "__float2half"),
        (torch.bfloat16, "__nv_bfloat16", "__bfloat162float", "__float2bfloat16"),
    ],
)
def test_half_types_round_as_torch_does(dtype, kind, to_float, from_float):
    text = f"""
    template <typename T> void convert(const T* x, float* wide, const float* y, T* narrow, int n) {{
      const int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) wide[i] = {to_float}(x[i]), narrow[i] = {from_float}(y[i]);
    }}"""
    runtime = cuda_emulator.EmulatedRuntime()
    name = f"convert<{kind}>"
    module = cuda_emulator.EmulatedModule(
        runtime, cuda_emulator._library(text, (name,), False), [name]
    )
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    bits = torch.randint(-(2**31), 2**31, x.shape, generator=torch.Generator().manual_seed(0))
    y = bits.to(torch.int32).view(torch.float32)
    y[::2] = x[::2].float() * (1 + 2.0**-9)  # Near ties of either type, subnormals among them.
    wide, narrow = torch.empty(x.shape), torch.empty_like(x)
    args = [runtime.address(tensor) for tensor in (x, wide, y, narrow)]
    count = launcher._typed(x.numel(), float)
    module.get_function(name)((512, 1, 1), (128, 1, 1), (*args, count))
    torch.testing.assert_close(wide, x.float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(narrow, y.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_values_without_edits_match(emulate):
    emulate(check=True)
    Attention().check_budget(Case((9, 11), 5, batch=1, heads=2, depth=12), "cuda", torch.float16)
