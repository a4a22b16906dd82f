"""Building and loading the CPU library: variants, threads, forks, no compiler, addresses."""

import functools
import os
import platform
import shlex
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import acmix
from acmix import info
from acmix.backends.cpu import build, library
from support import ROOT

pytestmark = pytest.mark.skipif(
    bool(library.problem()), reason=f"no CPU library: {library.problem()}"
)


def run_python(code, **environment):
    """Run code in a fresh interpreter; returns its output."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "core"), **environment}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def attention_maps(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


def forward_and_backward(q, k, v, kernel_size=7, stride=1, dilation=1, **options):
    """Output, log-sum-exp and gradients straight from the library."""
    loaded = library.load()
    out_size = [-(-n // stride) for n in q.shape[3:]]
    out, lse = q.new_empty(*q.shape[:3], *out_size), q.new_empty(*q.shape[:2], 1, *out_size)
    reflect = dilation * (kernel_size // 2) < min(q.shape[3:])
    window = functools.partial(
        library.window, q.shape, kernel_size, stride, dilation, reflect=reflect
    )
    inputs = dict(q=q, k=k, v=v, lse=lse)
    loaded.run("attention", window(), dict(inputs, out=out), **options)
    dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
    grads = dict(grad_q=dq[..., ::stride, ::stride], grad_k=dk, grad_v=dv)
    maps = dict(inputs, grad=torch.ones_like(out), **grads)
    loaded.run("attention", window(backward=True), maps, **options)
    return out, lse, dq, dk, dv


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variants are those of x86-64")
def test_variants_compile_without_shuffles_of_vectors():
    for name, source, options in build.compilations(build.find_compiler()):
        flags = [*build._FLAGS, *options, "-DACMIX_NO_SHUFFLE", "-fsyntax-only"]
        command = [*build.find_compiler(), *flags, str(build.SOURCE / source)]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, (name, ran.stderr[-3000:])


def test_compiler_without_tiles_builds_the_rest(tmp_path, monkeypatch):
    # A stand-in for the assembler of an old machine, which refuses their instructions.
    compiler = tmp_path / "old"
    refusal = 'case "$*" in *amx*) echo "unrecognized option" >&2; exit 1;; esac'
    command = shlex.join(build.find_compiler())
    compiler.write_text(f'#!/bin/sh\n{refusal}\nexec {command} "$@"\n')
    compiler.chmod(0o755)
    assert not build.knows_tiles([str(compiler)])
    monkeypatch.setattr(build, "_FLAGS", [*build._FLAGS, "-O0"])
    monkeypatch.delenv("ACMIX_CPU_ISA", raising=False)
    loaded = library.Library(build.build(tmp_path / "libacmix_cpu.so", [str(compiler)]))
    assert loaded.isas == tuple(isa for isa in library.load().isas if isa != "amx")
    monkeypatch.setattr(library, "load", lambda: loaded)
    maps = attention_maps(1, 1, 16, 7, 7)
    with pytest.raises(OSError, match="has no amx variant"):
        forward_and_backward(*maps, isa="amx")


def test_calls_from_two_threads_at_once():
    cases = [attention_maps(2, 4, 8, 28, width) for width in (28, 31)]
    expected = [forward_and_backward(*maps) for maps in cases]
    wrong = []

    def work(which):
        for _ in range(20):
            results = zip(forward_and_backward(*cases[which]), expected[which], strict=True)
            if not all(torch.equal(ours, theirs) for ours, theirs in results):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_forked_child_runs_every_kernel():
    out = run_python(
        """
        import os, torch
        from operators import Aggregation, Attention, Case, Convolution, Difference, Paths
        torch.set_num_threads(2)
        # So small, and with so many heads that no layer is folded, that torch itself keeps to one
        # thread: its own parallel operators hang in a child.
        case = Case((14, 14), 5, batch=1, heads=5, depth=4)
        kinds = [Aggregation(), Attention(), Convolution(), Difference(), Paths()]
        calls = [(kind.on(case, "cpu"), kind.inputs(case, torch.float32)) for kind in kinds]
        before = [call(*inputs) for call, inputs in calls]
        child = os.fork()
        if child == 0:
            after = [call(*inputs) for call, inputs in calls]
            same = [x.numpy().tobytes() == y.numpy().tobytes() for x, y in zip(after, before)]
            os._exit(0 if len(same) == 5 and all(same) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        PYTHONPATH=os.pathsep.join([str(ROOT / "core"), str(ROOT / "tests")]),
    )
    assert out.strip() == "0"


@pytest.mark.slow
def test_number_of_threads_is_torchs():
    out = run_python(
        """
        import os, threading, torch, acmix
        from acmix.backends.cpu import library
        torch.set_num_threads(1)
        x = torch.randn(2, 4, 16, 28, 28)
        library.load()
        count = lambda: len(os.listdir("/proc/self/task"))
        start = count()
        acmix.sliding_window_attention(x, x, x, backend="cpu")
        single = count() - start
        torch.set_num_threads(3)
        acmix.sliding_window_attention(x, x, x, backend="cpu")
        # Torch's OpenMP pool keeps its threads for the next call.
        print(single, count() - start)
        """
    )
    single, three = map(int, out.split())
    assert single == 0
    assert three == (2 if library._openmp_pool() else 0)


@pytest.mark.slow
def test_no_compiler_leaves_torch_and_says_so(tmp_path):
    out = run_python(
        """
        import torch, acmix
        from acmix import info
        x = torch.randn(1, 1, 4, 9, 9)
        print(acmix.sliding_window_attention(x, x, x).shape)
        try:
            acmix.sliding_window_attention(x, x, x, backend="cpu")
        except acmix.BackendError as error:
            print(error)
        info.main()
        """,
        PATH="",
        CXX="",
        ACMIX_CACHE_DIR=str(tmp_path),
    )
    assert "torch.Size([1, 1, 4, 9, 9])" in out
    assert "no C++ compiler on the path: install g++ or clang++, or set CXX" in out
    assert "CPU kernels: missing" in out


def test_failing_compiler_is_named(tmp_path):
    with pytest.raises(build.BuildError, match="set CXX to another C\\+\\+17 compiler"):
        build.build(tmp_path / "lib.so", ["false"])
    assert list(tmp_path.iterdir()) == []


def test_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(build.BuildError, match="set ACMIX_CACHE_DIR"):
        build.build(tmp_path / "file" / "lib.so")


COMPILER = """#!/bin/sh
# Takes no time to compile, and some to link.
while [ $# -gt 0 ]; do [ "$1" = -o ] && target=$2; shift; done
case $target in
*.o) touch "$target" ;;
*.so) sleep 1 && cp {library} "$target" ;;
esac
"""


@pytest.mark.slow
def test_two_processes_may_build_at_once(tmp_path):
    compiler, cache = tmp_path / "compiler", tmp_path / "cache"
    compiler.write_text(COMPILER.format(library=library.load().path))
    compiler.chmod(0o755)
    code = "from acmix.backends.cpu import library; print(library.load().path)"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "core")}
    env |= {"CXX": str(compiler), "ACMIX_CACHE_DIR": str(cache)}
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1]
    (folder,) = cache.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["libacmix_cpu.so", "libacmix_cpu.so.sha256"]


def test_wrong_variant_is_named(monkeypatch):
    path = library.load().path
    monkeypatch.setenv("ACMIX_CPU_ISA", "sse9")
    with pytest.raises(OSError, match="ACMIX_CPU_ISA=sse9: this machine has baseline"):
        library.Library(path)


def test_other_version_of_the_interface_is_named(monkeypatch):
    path, built = library.load().path, library.ABI_VERSION
    with monkeypatch.context() as patch:
        patch.setattr(library, "ABI_VERSION", built + 1)
        with pytest.raises(OSError, match=f"version {built} of .*run python -m acmix"):
            library.Library(path)
    for operator in library.STRUCTS:
        with monkeypatch.context() as patch:
            patch.setitem(library.STRUCTS, operator, library.Layout(("i", "other")))
            with pytest.raises(OSError, match=f"struct of {operator} has .* run python -m acmix"):
                library.Library(path)


def test_unknown_map_is_refused():
    x = torch.zeros(1, 1, 1, 4, 4)
    window = library.window(x.shape, 3, 1, 1, reflect=True)
    with pytest.raises(KeyError, match="keys"):
        library.load().run("attention", window, dict(q=x, keys=x))


def test_window_too_large_for_any_memory():
    x = torch.zeros(1, 1, 1, 4, 4)
    window = library.window(x.shape, 2**31 - 1, 1, 2**31, reflect=False)
    maps = dict(q=x, k=x, v=x, out=x.clone(), lse=x.clone())
    with pytest.raises(MemoryError, match="attention.*smaller window"):
        library.load().run("attention", window, maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_addresses_beyond_32_bits(tmp_path, dtype):
    """Images more than 2³¹ elements apart in a sparse file: offsets must be 64-bit throughout."""
    apart, shape = 2**31 + 11, (2, 2, 3, 9, 8)
    strides = (apart, 5000, 1200, 100, 3)
    maps = []
    for i, x in enumerate(attention_maps(*shape, dtype=dtype)):
        path = str(tmp_path / f"{i}.bin")
        storage = torch.from_file(path, shared=True, size=apart + 20_000, dtype=dtype)
        maps.append(storage.as_strided(shape, strides).copy_(x))
    far = acmix.sliding_window_attention(*maps, kernel_size=3, backend="cpu")
    near = [x.contiguous() for x in maps]
    torch.testing.assert_close(
        far, acmix.sliding_window_attention(*near, kernel_size=3, backend="cpu"), rtol=0, atol=0
    )


def test_info_lists_every_operator(capsys):
    info.main()
    out = capsys.readouterr().out
    assert f"variant {library.load().isa}" in out
    for op in info.OPS:
        assert op in out
