"""The flags of the commands; those of training and testing are MMPretrain's."""

import argparse
import re

from mmengine.config import DictAction

CHECKPOINT = "checkpoint file: own, released or plain"


class MergeOptions(DictAction):
    """``--cfg-options`` that may be given more than once."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Add these options to the earlier ones."""
        earlier = getattr(namespace, self.dest) or {}
        try:
            # MMEngine would take a dictionary for a text, or never end.
            if any(re.search(r"\{|\bdict\(", value) for value in values):
                raise ValueError
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, RecursionError, ValueError):
            parser.error(
                f"{option_string} {' '.join(values)}: give key=value, lists as [a,b]; dictionaries "
                "by a key for each entry, as in train_dataloader.dataset.pipeline.0.type=Resize"
            )
        setattr(namespace, self.dest, {**earlier, **getattr(namespace, self.dest)})


def train_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/train.py``."""
    parser = _shared_parser("Train a model")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or without a path from the last one of the work dir",
    )
    parser.add_argument("--no-validate", action="store_true", help="don't validate in training")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch size of this run",
    )
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="open every image of an image folder first, and name all that can't be decoded",
    )
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="the same, and go on without the images that can't be decoded",
    )
    parser.add_argument(
        "--no-persistent-workers", action="store_true", help="start loader workers each epoch"
    )
    return parser


def test_parser() -> argparse.ArgumentParser:  # noqa: PT028
    """Flags of ``tools/test.py``."""
    parser = _shared_parser("Test a model")
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument("--out", help="file for predictions (.pkl) or metrics (.json, .pkl)")
    parser.add_argument("--out-item", choices=["metrics", "pred"], help="what --out holds")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="folder for pictures of predictions")
    parser.add_argument("--interval", type=int, default=1, help="show every n-th sample")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds a window stays")
    parser.add_argument(
        "--tta", action="store_true", help="average over horizontal flips, or the config's variants"
    )
    return parser


def export_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/export.py``."""
    parser = _config_parser("Write a trained model as a file that runs without acmix")
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument(
        "out",
        help="file: .onnx, .pt2 (torch.export), .aot.pt2 (AOTInductor) or .pt (TorchScript); "
        "replaced if it is there",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=int,
        help="height and width of the images, or one number for both; the config's by default",
    )
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument("--dynamic", action="store_true", help="leave batch, height and width open")
    parser.add_argument("--half", action="store_true", help="weights and images of float16")
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/predict.py``."""
    parser = _config_parser("Predict classes, objects or masks of images")
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument("images", nargs="+", help="images, folders with images, or patterns")
    parser.add_argument(
        "--out-dir", help="folder for pictures, predictions.json and predictions.csv"
    )
    parser.add_argument(
        "--topk", type=int, default=5, help="classes or objects of an image (default: 5)"
    )
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default: 8)")
    _add_device(parser)
    return parser


def analyze_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/analyze.py``."""
    parser = _config_parser("Show what the layers of a trained model do")
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument(
        "--out", required=True, help="folder for report.html, figures and analysis.json"
    )
    parser.add_argument(
        "--image", nargs="+", help="images, folders or patterns; the config's test set by default"
    )
    parser.add_argument(
        "--query",
        nargs="+",
        help="pixels whose attention is shown, as row,column in shares of the image: 0.5,0.5",
    )
    parser.add_argument(
        "--layers", nargs="+", help="layers that are shown; the last one of every stage by default"
    )
    _add_device(parser)
    return parser


def demo_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/demo.py``."""
    parser = _config_parser("Show on a page of this machine what a model sees in an image")
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument("--port", type=int, help="port; the first free one from 7860 by default")
    _add_device(parser)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1; a GPU by default where there is one")


def _config_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=MergeOptions,
        help="settings that override the config's, e.g. data_root=/data/imagenet "
        "train_dataloader.batch_size=32; may be given more than once",
    )
    return parser


def _shared_parser(description: str) -> argparse.ArgumentParser:
    parser = _config_parser(description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--no-pin-memory", action="store_true", help="don't pin host memory")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run were started",
    )
    # torch.distributed.launch passes one spelling or the other, by version.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser
