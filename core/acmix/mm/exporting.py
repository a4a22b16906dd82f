"""A trained model as a file that runs without acmix, written, run and compared in one go."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acmix.deploy import deploy
from acmix.errors import InputError
from acmix.mm.files import whole_file
from acmix.mm.formats import FORMATS, Outputs, Request, ending_of

# What a result may differ by from the model's, as a share of its largest value or of 1; in half
# precision, this more than so many times the model's own difference.
TOLERANCE = 1e-4
HALF_BUDGET = 2

# Standard deviation of the normalised images of a comparison. Where attention has no bound and
# norms have fixed statistics, as in SAN, images unlike the training data make a network overflow.
_CONTRAST = 0.1


class Exported(nn.Module):
    """What a file computes: a classifier's scores, or the maps of another model's neck.

    Args:
        model: A classifier, detector or segmentor; in evaluation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.scores = hasattr(model, "head") and getattr(model, "with_head", True)
        self.eval()

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for normalised images (B, 3, H, W).

        Returns:
            Scores (B, classes) alone, or maps (B, C, H', W') from fine to coarse.
        """
        if self.scores:
            return (self.model(images, mode="tensor"),)
        return tuple(self.model.extract_feat(images))

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the pixels of 0 to 255, by channel."""
        steps = self.model.data_preprocessor
        if not getattr(steps, "_enable_normalize", False):
            return [0.0] * 3, [1.0] * 3
        return steps.mean.flatten().tolist(), steps.std.flatten().tolist()

    def names(self, outputs: Outputs) -> list[str]:
        """Names of these outputs."""
        return ["scores"] if self.scores else [f"map_{i}" for i in range(len(outputs))]


@dataclass
class Check:
    """One comparison of a file with the model.

    Attributes:
        shape: Of the images.
        error: Largest difference of an output, as a share of the largest value or of 1.
        allowed: What it may be.
    """

    shape: tuple[int, ...]
    error: float
    allowed: float


def write_checked(
    model: Exported,
    path: Path,
    shapes: Sequence[tuple[int, ...]],
    *,
    dynamic: bool,
    metadata: dict,
    dtype: torch.dtype = torch.float32,
) -> list[Check]:
    """Write a file, run it on images of several shapes, and keep it if it computes the same.

    The layers are put into their deploy form first; the file is compared with what the model gave
    before.

    Args:
        model: In single precision.
        path: The file; its ending is one of ``FORMATS``.
        shapes: Of the images, (B, 3, H, W); the first one is the example.
        dynamic: Whether batch, height and width are left open.
        metadata: What is written into the file beside the model, as JSON.
        dtype: Of weights and images: float32 or float16.

    Raises:
        InputError: The exporter refuses, or a result differs by more than is allowed.
    """
    ending = ending_of(path)
    kind, checks = FORMATS[ending], []
    kind.require()
    remedy = _remedy(ending, dynamic, dtype)
    generator = torch.Generator().manual_seed(0)
    inputs = [_CONTRAST * torch.randn(shape, generator=generator) for shape in shapes]
    with torch.no_grad():
        expected = _results(model, inputs, path, "give a checkpoint of a model that was trained")
        deploy(model).to(dtype)
        inputs = [x.to(dtype) for x in inputs]
        # This also makes the positions of each size: those of a file of one size are constants.
        own = _results(model, inputs, path, remedy)
        request = Request(inputs, dynamic, metadata, model.names(expected[0]))
        with whole_file(path) as partial:
            with _refusals(path, "the model", remedy):
                kind.write(model, partial, request)
            run = kind.load(partial)
            for x, wanted, near in zip(inputs, expected, own, strict=True):
                with _refusals(path, f"images {_text(x.shape)}", remedy):
                    found = run(x)
                allowed = TOLERANCE
                if dtype == torch.float16:
                    allowed += HALF_BUDGET * difference(near, wanted)
                checks.append(Check(tuple(x.shape), difference(found, wanted), allowed))
                _require_same(path, checks[-1], remedy)
    return checks


def _results(model: Exported, inputs: list[Tensor], path: Path, remedy: str) -> list[Outputs]:
    """What the model gives, if it is finite: nothing can be compared with other numbers."""
    results = []
    for x in inputs:
        with _refusals(path, f"images {_text(x.shape)}", "give another --size"):
            results.append(model(x))
        if not all(out.isfinite().all() for out in results[-1]):
            kind = str(x.dtype).removeprefix("torch.")
            raise InputError(
                f"{path}: the model's own results for images {_text(x.shape)} in {kind} are not "
                f"finite; {remedy}"
            )
    return results


def difference(outputs: Outputs, wanted: Outputs) -> float:
    """Largest difference of an output, as a share of its largest value or of 1."""
    pairs = list(zip(outputs, wanted, strict=True))
    if any(mine.shape != theirs.shape for mine, theirs in pairs):
        return float("inf")
    return max(
        float((mine.float() - theirs).abs().max() / theirs.abs().max().clamp(min=1))
        for mine, theirs in pairs
    )


def _require_same(path: Path, check: Check, remedy: str) -> None:
    if not check.error <= check.allowed:
        raise InputError(
            f"{path}: images {_text(check.shape)} give another result than the model, by "
            f"{check.error:.1e}; nothing is written; {remedy}"
        )


@contextmanager
def _refusals(path: Path, what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"{path}: {what} can't be served ({reason}); {remedy}") from error


def _remedy(ending: str, dynamic: bool, dtype: torch.dtype) -> str:
    ways = ["leave --half out"] if dtype == torch.float16 else []
    if dynamic:
        ways.append("leave --dynamic out")
    if dynamic and ending.endswith(".pt2"):
        # torch.export makes a guard of it whether there is one window, or pixel, or several.
        ways += ["give a larger --size", "write .onnx or .pt, which have no guards"]
    else:
        ways.append("try another ending")
    return ", or ".join(ways)


def _text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
