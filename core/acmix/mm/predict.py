"""The prediction command of every project."""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.utils import ProgressBar

from acmix.errors import InputError
from acmix.mm.explain import input_errors_explained
from acmix.mm.export import load_model
from acmix.mm.files import write_text
from acmix.mm.image_folder import ENDINGS, image_files, reason_against
from acmix.mm.parsers import predict_parser
from acmix.mm.predicting import Prediction, Predictor, Record
from acmix.mm.settings import read_config

# From so many images on, progress is shown.
_MANY = 32


@input_errors_explained()
def predict(project: Path, argv: Sequence[str] | None = None) -> list[Record]:
    """Run ``tools/predict.py`` of a project.

    Args:
        project: Folder of the project, where configs are looked for besides the working directory.
        argv: Arguments; those of the process if ``None``.

    Returns:
        A record for each image: ``image`` and what ``Prediction.record`` has, or ``skipped`` and
        the reason.
    """
    args = predict_parser().parse_args(argv)
    for name, value in (("--topk", args.topk), ("--batch", args.batch)):
        if value < 1:
            raise InputError(f"{name} {value}: give a positive number")
    images = find_images(args.images)
    device = find_device(args.device)
    out = None if args.out_dir is None else Path(args.out_dir)
    if out is not None:
        make_folder("--out-dir", out)
    cfg = read_config(project, args)
    model, classes = load_model(cfg, args.checkpoint)
    reasons = {path: reason for path in images if (reason := reason_against(path)) is not None}
    for path, reason in reasons.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)
    readable = [path for path in images if path not in reasons]
    if not readable:
        raise InputError(f"{' '.join(args.images)}: none of {len(images)} files can be decoded")
    predictor = Predictor(cfg, model, classes, device, args.topk)
    found = {p.path: p.record for p in _run(predictor, readable, images, args.batch, out)}
    records = [
        {"image": str(path), **found.get(path, {"skipped": reasons.get(path)})} for path in images
    ]
    print(as_table(records))
    if out is not None:
        write_text(out / "predictions.json", json.dumps(records, indent=2) + "\n")
        write_text(out / "predictions.csv", as_csv(records))
        print(f"wrote {len(readable)} pictures, predictions.json and predictions.csv to {out}")
    return records


def find_images(arguments: Sequence[str]) -> dict[Path, str]:
    """Image files by files, folders and patterns, each with the name of its picture.

    Raises:
        InputError: One of them names no image.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            below = list(image_files(path, "."))
            files = [(path / file, Path(file)) for file in below]
        elif path.exists():
            files = [(path, Path(path.name))]
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            files = [(Path(match), Path(Path(match).name)) for match in matches]
        if not files:
            endings = ", ".join(ENDINGS)
            raise InputError(f"{argument}: no such file, and no folder with images ({endings})")
        for file, name in files:
            if file.is_file() and file not in names:
                names[file] = _free(name.with_suffix(".png"), taken)
                taken.add(names[file])
    return names


def make_folder(flag: str, out: Path) -> None:
    """Make the folder that a flag names.

    Raises:
        InputError: It can't be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {out}: {error.strerror}; give another folder") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {out}: it can't be written to; give another folder")


def _free(name: Path, taken: set[str]) -> str:
    """The name, or with a number if another picture has it."""
    found, count = name, 1
    while found.as_posix() in taken:
        count += 1
        found = name.with_stem(f"{name.stem}-{count}")
    return found.as_posix()


def find_device(name: str | None) -> torch.device:
    """The device of ``--device``, or a GPU where there is one.

    Raises:
        InputError: There is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: {reason}; leave it out to choose by itself") from error
    return device


def _run(
    predictor: Predictor,
    images: Sequence[Path],
    names: dict[Path, str],
    batch: int,
    out: Path | None,
) -> Iterator[Prediction]:
    """Predictions batch by batch; pictures are written as they come."""
    progress = ProgressBar(len(images), file=sys.stderr) if len(images) >= _MANY else None
    for first in range(0, len(images), batch):
        for prediction in predictor(images[first : first + batch]):
            if out is not None:
                picture = out / names[prediction.path]
                picture.parent.mkdir(parents=True, exist_ok=True)
                predictor.draw(prediction, picture)
            if progress is not None:
                progress.update()
            yield prediction
    if progress is not None:
        print(file=sys.stderr)


def as_table(records: Sequence[Record]) -> str:
    """A line for each image: its name and the best of what was found."""
    width = max(len(record["image"]) for record in records)
    return "\n".join(f"{record['image']:{width}}  {_summary(record)}" for record in records)


def _summary(record: Record) -> str:
    if "skipped" in record:
        return f"skipped: {record['skipped']}"
    if "areas" in record:
        return ", ".join(f"{name} {share:.1%}" for name, share in record["areas"].items())
    found = record["classes"] if "classes" in record else record["objects"]
    return ", ".join(f"{entry['class']} {entry['score']:.3f}" for entry in found) or "nothing found"


def as_csv(records: Sequence[Record]) -> str:
    """A row for each class, object or area of each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "score", "left", "top", "right", "bottom"])
    for record in records:
        shares = record.get("areas", {}).items()
        found = [{"class": name, "score": share} for name, share in shares]
        for entry in record.get("classes") or record.get("objects") or found:
            box = entry.get("box", [""] * 4)
            writer.writerow([record["image"], entry["class"], entry["score"], *box])
    return text.getvalue()
