"""A trained model as a file that runs without acmix, written, run and compared in one go."""

import importlib
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from acmix.deploy import deploy
from acmix.errors import InputError
from acmix.mm.files import whole_file

METADATA = "acmix.json"
OPSET = 20
# What a result may differ by from the model's, as a share of its largest value or of 1; in half
# precision, this more than so many times the model's own difference.
TOLERANCE = 1e-4
HALF_BUDGET = 2

# Standard deviation of the normalised images of a comparison. Where attention has no bound and
# norms have fixed statistics, as in SAN, images unlike the training data make a network overflow.
_CONTRAST = 0.1

Outputs = tuple[Tensor, ...]
Run = Callable[[Tensor], Outputs]


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

    def names(self) -> list[str]:
        """Names of the outputs."""
        if self.scores:
            return ["scores"]
        with torch.no_grad():
            count = len(self(next(self.parameters()).new_zeros(1, 3, 64, 64)))
        return [f"map_{i}" for i in range(count)]


class FileFormat(ABC):
    """A kind of file: how it is written, and how it is run."""

    @abstractmethod
    def write(
        self, model: Exported, example: Tensor, path: Path, dynamic: bool, metadata: dict
    ) -> None:
        """Write a file for inputs as the example, or of any batch, height and width."""

    @abstractmethod
    def load(self, path: Path) -> Run:
        """The file as a function."""


class Onnx(FileFormat):
    """ONNX by torch's exporter of programs, run by onnxruntime."""

    def write(
        self, model: Exported, example: Tensor, path: Path, dynamic: bool, metadata: dict
    ) -> None:
        """See ``FileFormat``."""
        onnx = _imported("onnx", "onnxscript", "onnxruntime")
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=model.names(),
            dynamic_shapes=(_OPEN,) if dynamic else None,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {key: json.dumps(v) for key, v in metadata.items()})
        onnx.save(proto, path)

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        runtime = _imported("onnxruntime")
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: tuple(map(torch.from_numpy, session.run(None, {"images": x.numpy()})))


class Program(FileFormat):
    """``torch.export``: a program of plain operators."""

    def write(
        self, model: Exported, example: Tensor, path: Path, dynamic: bool, metadata: dict
    ) -> None:
        """See ``FileFormat``."""
        program = torch.export.export(
            model, (example,), dynamic_shapes=(_OPEN,) if dynamic else None
        )
        # torch wants its own ending, and the file is still to be checked.
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        with path.open("rb") as file:
            return torch.export.load(file).module()


class Trace(FileFormat):
    """``torch.jit.trace``: TorchScript, of any size."""

    def write(
        self, model: Exported, example: Tensor, path: Path, dynamic: bool, metadata: dict
    ) -> None:
        """See ``FileFormat``; a trace leaves sizes open in any case."""
        trace = torch.jit.trace(model, example, check_trace=False)
        trace.save(str(path), _extra_files={METADATA: json.dumps(metadata)})

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        return torch.jit.load(str(path))


FORMATS: dict[str, FileFormat] = {".onnx": Onnx(), ".pt2": Program(), ".pt": Trace()}
_OPEN = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


def format_of(path: Path) -> FileFormat:
    """The kind of file that an ending names.

    Raises:
        InputError: None.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: give a name that ends in {', '.join(FORMATS)}")
    return FORMATS[path.suffix]


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
    kind, checks = format_of(path), []
    generator = torch.Generator().manual_seed(0)
    inputs = [_CONTRAST * torch.randn(shape, generator=generator) for shape in shapes]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        deploy(model).to(dtype)
        # This also makes the positions of each size: those of a file of one size are constants.
        own = [model(x.to(dtype)) for x in inputs]
        with whole_file(path) as partial:
            with _quiet(), _refusals(path, shapes[0], dynamic):
                kind.write(model, inputs[0].to(dtype), partial, dynamic, metadata)
            run = kind.load(partial)
            for x, wanted, near in zip(inputs, expected, own, strict=True):
                with _refusals(path, tuple(x.shape), dynamic):
                    found = run(x.to(dtype))
                allowed = TOLERANCE
                if dtype == torch.float16:
                    allowed += HALF_BUDGET * _difference(near, wanted)
                checks.append(Check(tuple(x.shape), _difference(found, wanted), allowed))
                _require_same(path, checks[-1])
    return checks


def _difference(outputs: Outputs, wanted: Outputs) -> float:
    pairs = list(zip(outputs, wanted, strict=True))
    if any(mine.shape != theirs.shape for mine, theirs in pairs):
        return float("inf")
    return max(
        float((mine.float() - theirs).abs().max() / theirs.abs().max().clamp(min=1))
        for mine, theirs in pairs
    )


def _require_same(path: Path, check: Check) -> None:
    if not check.error <= check.allowed:
        raise InputError(
            f"{path}: images {_text(check.shape)} give another result than the model, by "
            f"{check.error:.1e}; nothing is written; try another ending, or leave --dynamic out"
        )


@contextmanager
def _refusals(path: Path, shape: tuple[int, ...], dynamic: bool) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        remedy = "leave --dynamic out" if dynamic else "try another ending"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(
            f"{path}: images {_text(shape)} can't be served ({reason}); {remedy}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _imported(name: str, *others: str) -> Any:
    try:
        for other in others:
            importlib.import_module(other)
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed, which .onnx needs; pip install 'acmix[onnx]'"
        ) from error


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
