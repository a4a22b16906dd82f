"""What every export of a layer costs: ``python core/benchmarks/exports.py``.

Nodes, size of the file, largest error against eager mode at several sizes and batches, and the time
of one map, in turn with eager mode. The table goes to ``exports.csv`` beside this file.
"""

import csv
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from timing import alternate, device_name
from torch import nn

import acmix
from acmix.mm.formats import FileFormat, Onnx, Program, Request, Trace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from exporting import OnMaps, error_at  # noqa: E402
from layers import randomised  # noqa: E402

OUTPUT = Path(__file__).with_name("exports.csv")
SIZE = (28, 28)
# Multiples of the window and of the reduction, and others.
SIZES = (SIZE, (56, 42), (29, 57), (5, 33), (3, 2))
COLUMNS = ("layer", "form", "way", "sizes", "nodes", "KiB", "error", "ms", "ratio", "device")

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ACmix2d": lambda: acmix.ACmix2d(64, 64),
    "WindowACmix": lambda: acmix.WindowACmix(64, 7, 4),
    "VectorACmix": lambda: acmix.VectorACmix(64, 64),
    "GlobalACmix": lambda: acmix.GlobalACmix(64, 4, sr_ratio=2),
}

# Windows or reduced pixels: torch.export makes a guard of it.
NEED_MORE_THAN_ONE = (acmix.WindowACmix, acmix.GlobalACmix)

# Ways, and for which sizes; a trace leaves them open in any case.
WAYS: dict[str, tuple[FileFormat, tuple[bool, ...]]] = {
    "torch.export": (Program(), (False, True)),
    "torch.jit.trace": (Trace(), (True,)),
    "ONNX, dynamo=True": (Onnx(), (False, True)),
    "ONNX, dynamo=False": (Onnx(dynamo=False), (False, True)),
}


def measure(layer: OnMaps, kind: FileFormat, any_size: bool, path: Path) -> dict:
    """One row: export, compare and time."""
    x = layer.example(*SIZE, batch=2 if any_size else 1)
    kind.write(layer, path, Request([x], dynamic=any_size))
    run = kind.load(path)
    sizes = SIZES if any_size else SIZES[:1]
    if isinstance(kind, Program) and isinstance(layer.layer, NEED_MORE_THAN_ONE):
        sizes = [size for size in sizes if min(size) > 7]
    batches = (1, 3) if any_size else (1,)
    error = max(
        error_at(run, layer, layer.example(*size, batch=batch))
        for size in sizes
        for batch in batches
    )
    one = layer.example(*SIZE, batch=1)
    seconds = alternate({"eager": lambda: layer(one), "file": lambda: run(one)}, repeats=15)
    ratios = [a / b for a, b in zip(seconds["file"], seconds["eager"], strict=True)]
    return {
        "sizes": "any" if any_size else "one",
        "nodes": kind.nodes(path),
        "KiB": round(path.stat().st_size / 1024),
        "error": f"{error:.1e}",
        "ms": f"{1e3 * statistics.median(seconds['file']):.3g}",
        "ratio": f"{statistics.median(ratios):.2f}",
    }


@torch.no_grad()
def main() -> None:
    """Export every layer in every way, and keep the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name, build in LAYERS.items():
        for form in ("trained", "deployed"):
            torch.manual_seed(0)
            module = randomised(build()).eval()
            layer = OnMaps(acmix.deploy(module) if form == "deployed" else module)
            for way, (kind, sizes) in WAYS.items():
                for any_size in sizes:
                    with tempfile.TemporaryDirectory() as folder:
                        found = measure(layer, kind, any_size, Path(folder, "layer"))
                    rows.append(dict(layer=name, form=form, way=way, device=device_name(), **found))
                    print(*list(rows[-1].values())[:-1], flush=True)
    with OUTPUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
