"""The ImageNet models as ONNX files of any size: ``python core/benchmarks/exported_models.py``.

Every model gets random weights and goes through the export command; nodes, size and the largest
error go to ``exported_models.csv`` beside this file, and the ONNX file stays in
``build/exported-models``. With ``--time`` one image of 224×224 is timed too, in onnxruntime, in
OpenVINO and in eager mode by turns: two minutes on an idle machine. What is in the table already is
kept; names of models do these anew.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
import yaml
from timing import alternate, device_name
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from acmix import VectorACmix  # noqa: E402
from acmix.mm.export import export  # noqa: E402
from acmix.mm.exporting import Exported, difference  # noqa: E402
from acmix.mm.formats import Onnx  # noqa: E402
from exporting import in_openvino  # noqa: E402
from support import build_model  # noqa: E402

OUTPUT = Path(__file__).with_name("exported_models.csv")
FILES = ROOT / "build" / "exported-models"
SIZES = ((224, 224), (192, 256), (97, 61))
MODELS = {
    "resnet": ("ResNet-ACmix-26", "ResNet-ACmix-38", "ResNet-ACmix-50"),
    "san": ("SAN-ACmix-10", "SAN-ACmix-15", "SAN-ACmix-19"),
    "pvt": ("PVT-ACmix-T", "PVT-ACmix-S"),
    "swin": ("Swin-ACmix-T", "Swin-ACmix-S"),
}
WRITTEN = ("nodes", "MiB", "seconds", "error", "OpenVINO error")
TIMED = ("eager ms", "onnxruntime ms", "onnxruntime ratio", "OpenVINO ms", "OpenVINO ratio")
COLUMNS = ("model", *WRITTEN, *TIMED, "device")


def config_of(project: str, name: str) -> Path:
    """The config that the metafile has of a model."""
    models = yaml.safe_load((ROOT / project / "metafile.yml").read_text())["Models"]
    (config,) = (model["Config"] for model in models if model["Name"] == name)
    return ROOT / project / config


@torch.no_grad()
def random_model(config: Path) -> nn.Module:
    """A classifier whose outputs depend on every parameter, with statistics of its own maps."""
    torch.manual_seed(0)
    model = build_model(config)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(model.head.fc.weight, std=model.head.fc.in_features**-0.5)
    for module in model.modules():
        if isinstance(module, VectorACmix):
            # Its weights of a neighbourhood have no bound: those of a random model as it is make
            # a large difference, or an overflow, of a rounding.
            module.conv_w[-1].weight.mul_(0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
    if norms:
        model.train()(0.1 * torch.randn(4, 3, 160, 160), mode="tensor")
    return model.eval()


def written(project: str, name: str, path: Path) -> dict:
    """Export a model, and what there is to say of the file."""
    config, checkpoint = config_of(project, name), path.with_suffix(".pth")
    torch.save({"state_dict": random_model(config).state_dict()}, checkpoint)
    start = time.process_time()
    arguments = [config, checkpoint, path, "--dynamic", "--size", SIZES[0][0]]
    checks = export(ROOT / project, [str(argument) for argument in arguments])
    return {
        "nodes": Onnx().nodes(path),
        "MiB": round(path.stat().st_size / 2**20, 1),
        "seconds": round(time.process_time() - start),
        "error": f"{max(check.error for check in checks):.1e}",
    }


@torch.no_grad()
def in_other_runtime(project: str, name: str, path: Path) -> dict:
    """Largest error of all sizes and batches in OpenVINO, which the command does not run."""
    model, run = Exported(random_model(config_of(project, name))), in_openvino(path)
    inputs = [0.1 * torch.randn(batch, 3, *size) for size in SIZES for batch in (1, 3)]
    return {"OpenVINO error": f"{max(difference(run(x), model(x)) for x in inputs):.1e}"}


@torch.no_grad()
def timed(project: str, name: str, path: Path) -> dict:
    """Milliseconds of one image, and ratios to eager mode of the undeployed model."""
    model, x = Exported(random_model(config_of(project, name))), 0.1 * torch.randn(1, 3, *SIZES[0])
    sides = {"eager": model, "onnxruntime": Onnx().load(path), "OpenVINO": in_openvino(path)}
    runs = {side: (lambda run=run: run(x)) for side, run in sides.items()}
    seconds = alternate(runs, repeats=15)
    row = {f"{side} ms": f"{1e3 * statistics.median(s):.3g}" for side, s in seconds.items()}
    for side in ("onnxruntime", "OpenVINO"):
        ratios = [a / b for a, b in zip(seconds[side], seconds["eager"], strict=True)]
        row[f"{side} ratio"] = f"{statistics.median(ratios):.2f}"
    return row | {"device": device_name()}


def read() -> dict[str, dict]:
    """Rows that are there, by model."""
    if not OUTPUT.exists():
        return {}
    with OUTPUT.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def write(rows: dict[str, dict]) -> None:
    """Keep the rows, in the order of the models."""
    partial = OUTPUT.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows[n] for names in MODELS.values() for n in names if n in rows)
    partial.replace(OUTPUT)


def main() -> None:
    """Export, and time, what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="do these anew, whatever is in the table")
    parser.add_argument("--time", action="store_true", help="measure latencies; nothing else runs")
    args = parser.parse_args()
    FILES.mkdir(parents=True, exist_ok=True)
    rows = {name: row for name, row in read().items() if name not in args.models}
    for project, names in MODELS.items():
        for name in names:
            path, row = FILES / f"{name}.onnx", rows.setdefault(name, {"model": name})
            steps = {"error": written, "OpenVINO error": in_other_runtime}
            if args.time:
                steps["eager ms"] = timed
            missing = [step for column, step in steps.items() if not row.get(column)]
            if missing and not path.exists() and written not in missing:
                missing.insert(0, written)
            for step in missing:
                row |= step(project, name, path)
                write(rows)
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
