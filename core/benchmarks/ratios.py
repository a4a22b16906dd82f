"""The ratio table: ``python core/benchmarks/ratios.py [--repeats 9] [--out ratios.csv]``.

Each case runs its sides in alternation. To add one, write a function that takes the number of
repeats and returns rows, and list it in ``CASES``; whole models belong there too.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import acmix
from acmix.native import library
from benchmarks.timing import Row, compare, show, write

# (H = W, head width) of the stages of ResNet-ACmix-50 at 224², N = 4, batch 4.
STAGES = [(56, 16), (28, 32), (14, 64), (7, 128)]
BATCH, HEADS, KERNEL = 4, 4, 7


def unfold_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The algorithm of the paper's code: k² copies of the keys and values by ``unfold``."""
    batch, heads, depth, height, width = q.shape
    pad = KERNEL // 2

    def windows(x):
        x = F.pad(x.flatten(1, 2), (pad,) * 4, mode="reflect")
        return F.unfold(x, KERNEL).view(batch * heads, depth, KERNEL**2, height, width)

    q = q.reshape(batch * heads, depth, 1, height, width) * depth**-0.5
    weights = (q * windows(k)).sum(1).softmax(dim=1)
    return (weights.unsqueeze(1) * windows(v)).sum(2).view(batch, heads, depth, height, width)


def flex_attention_side(size: int) -> tuple[Callable | None, str]:
    """Compiled flex_attention on the same window, cut at the border: it can't reflect."""
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def inside(b, h, query, key):
            dy = query // size - key // size
            dx = query % size - key % size
            return (dy.abs() <= KERNEL // 2) & (dx.abs() <= KERNEL // 2)

        mask = create_block_mask(inside, None, None, size * size, size * size, device="cpu")
        compiled = torch.compile(flex_attention)

        def run(q, k, v):
            sequences = (x.flatten(3).transpose(2, 3).contiguous() for x in (q, k, v))
            return compiled(*sequences, block_mask=mask)

        run(*[torch.zeros(1, HEADS, 16, size, size)] * 3)
        return run, ""
    except Exception as error:  # a peer's failure is a line of the table, whatever it is
        return None, f"flex_attention does not run: {str(error).splitlines()[0][:80]}"


def natten_side() -> tuple[Callable | None, str]:
    """NATTEN's neighbourhood attention, whose windows shift inwards at the border."""
    try:
        from natten.functional import na2d
    except ImportError:
        return None, "natten is not installed (its wheels are for CUDA)"

    def run(q, k, v):
        return na2d(*(x.permute(0, 3, 4, 1, 2).contiguous() for x in (q, k, v)), KERNEL)

    return run, ""


def stage_maps(size: int, depth: int, channels_last: bool = False) -> list[Tensor]:
    """q, k and v of one stage."""
    maps = [torch.randn(BATCH, HEADS * depth, size, size) for _ in range(3)]
    if channels_last:
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    return [x.unflatten(1, (HEADS, depth)) for x in maps]


def attention_sides(size: int, notes: list[str]) -> dict[str, Callable]:
    """Every algorithm for sliding window attention that runs here."""
    sides = {
        "acmix torch": lambda q, k, v: acmix.sliding_window_attention(q, k, v, backend="torch"),
        "unfold": unfold_attention,
    }
    if library.problem() is None:
        sides["acmix cpu"] = lambda q, k, v: acmix.sliding_window_attention(q, k, v, backend="cpu")
    else:
        notes.append(f"acmix cpu: {library.problem()}")
    for name, (run, note) in {
        "flex_attention": flex_attention_side(size),
        "natten": natten_side(),
    }.items():
        if run is None:
            notes.append(note)
        else:
            sides[name] = run
    return sides


def attention_inference(repeats: int) -> list[Row]:
    """Forward of the operator, every stage."""
    rows, notes = [], []
    for size, depth in STAGES:
        maps = stage_maps(size, depth)
        sides = {
            name: lambda run=run, maps=maps: run(*maps)
            for name, run in attention_sides(size, notes).items()
        }
        with torch.no_grad():
            rows += compare(f"attention {size}² D{depth} forward", sides, "acmix torch", repeats)
    for note in dict.fromkeys(notes):
        print(f"not run: {note}")
    return rows


def attention_training(repeats: int) -> list[Row]:
    """Forward and backward of the operator, every stage."""
    rows = []
    for size, depth in STAGES:
        leaves = [x.requires_grad_() for x in stage_maps(size, depth)]
        grad = torch.randn_like(leaves[0])
        sides = attention_sides(size, [])
        # Compiled for the CPU, flex_attention has no backward.
        sides.pop("flex_attention", None)
        calls = {
            name: lambda run=run, leaves=leaves, grad=grad: torch.autograd.grad(
                run(*leaves), leaves, grad
            )
            for name, run in sides.items()
            if name != "natten"
        }
        rows += compare(f"attention {size}² D{depth} step", calls, "acmix torch", repeats)
    return rows


def multiply_add_rate(repeats: int) -> list[Row]:
    """The attention kernel beside a large matrix product of as many multiply-adds a second."""
    if library.problem() is not None:
        return []
    a = torch.randn(1024, 1024)
    rows = []
    for size, depth in STAGES:
        for channels_last in (False, True):
            maps = stage_maps(size, depth, channels_last)
            sides = {
                "matmul 1024": lambda: a @ a,
                "acmix cpu": lambda maps=maps: acmix.sliding_window_attention(*maps, backend="cpu"),
            }
            memory = "channels last" if channels_last else "channels first"
            with torch.no_grad():
                found = compare(f"rate {size}² {memory}", sides, "matmul 1024", repeats)
            work = BATCH * HEADS * size**2 * KERNEL**2 * depth * 2
            rates = [1024**3 / found[0].median / 1e6, work / found[1].median / 1e6]
            for row, rate in zip(found, rates, strict=True):
                row.note = f"{rate:.1f} G multiply-adds/s, {100 * rate / rates[0]:.0f} % of matmul"
            rows += found
    return rows


def aggregation(repeats: int) -> list[Row]:
    """SAN's aggregation against products of unfolded values, forward and backward."""
    rows = []
    for size, channels, kernel in [(56, 64, 3), (28, 128, 7), (14, 256, 7)]:
        v = torch.randn(BATCH, channels, size, size, requires_grad=True)
        w = torch.randn(BATCH, channels // 8, kernel**2, size, size, requires_grad=True)

        def unfolded(v, w, kernel=kernel):
            padded = F.pad(v, (kernel // 2,) * 4, mode="reflect")
            windows = F.unfold(padded, kernel).view(*v.shape[:2], kernel**2, *v.shape[2:])
            return (windows.unflatten(1, (8, -1)) * w[:, None]).sum(3).flatten(1, 2)

        ours = functools.partial(acmix.neighbourhood_aggregation, kernel_size=kernel)
        runs = {"unfold": unfolded, "acmix torch": functools.partial(ours, backend="torch")}
        if library.problem() is None:
            runs["acmix cpu"] = functools.partial(ours, backend="cpu")
        case = f"aggregation {size}² C{channels} k{kernel}"
        forward = {name: lambda run=run, v=v, w=w: run(v, w) for name, run in runs.items()}
        with torch.no_grad():
            rows += compare(f"{case} forward", forward, "unfold", repeats)
        step = {
            name: lambda run=run, v=v, w=w: torch.autograd.grad(run(v, w).sum(), (v, w))
            for name, run in runs.items()
        }
        rows += compare(f"{case} step", step, "unfold", repeats)
    return rows


CASES = [attention_inference, attention_training, multiply_add_rate, aggregation]


def main() -> None:
    """Run all cases, print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="calls of every side, at least 7")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ratios.csv"))
    parser.add_argument("--only", nargs="*", help=", ".join(case.__name__ for case in CASES))
    options = parser.parse_args()
    rows = []
    for case in CASES:
        if not options.only or case.__name__ in options.only:
            rows += case(options.repeats)
    show(rows)
    write(rows, options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
