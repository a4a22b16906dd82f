"""Files that run without acmix: how a network is written as one, and how it is run from there."""

import importlib
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from acmix.errors import InputError

METADATA = "acmix.json"
OPSET = 20
INPUT = "images"
# Batch, height and width of (B, C, H, W) left open.
OPEN = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}

Outputs = tuple[Tensor, ...]
Run = Callable[[Tensor], Outputs]


@dataclass
class Request:
    """What a file is to be.

    Attributes:
        inputs: What it has to serve; the first one is the example.
        dynamic: Whether batch, height and width are left open.
        metadata: JSON values to go with it, by name.
        outputs: Names of the outputs, where a format has names.
    """

    inputs: Sequence[Tensor]
    dynamic: bool
    metadata: dict[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()

    @property
    def example(self) -> tuple[Tensor]:
        """Arguments of the call that is written down."""
        return (self.inputs[0],)

    @property
    def open_sizes(self) -> tuple[dict[int, Any]] | None:
        """The same, as the exporters of programs name it."""
        return (OPEN,) if self.dynamic else None

    @property
    def text(self) -> str:
        """The metadata as one text."""
        return json.dumps(self.metadata)


class FileFormat(ABC):
    """A kind of file, of networks that take one tensor (B, C, H, W) and give one or a tuple."""

    packages: tuple[str, ...] = ()
    # Whether a file of any size refuses small ones, if its example was none.
    guarded = False

    def require(self) -> None:
        """Check that what writes and runs such a file is installed.

        Raises:
            InputError: It isn't.
        """
        for package in self.packages:
            _imported(package)

    @abstractmethod
    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """Write a file.

        Args:
            model: In evaluation.
            path: The file, whatever its ending.
            request: What it is to be.
        """

    @abstractmethod
    def load(self, path: Path) -> Run:
        """The file as a function."""

    @abstractmethod
    def nodes(self, path: Path) -> int:
        """Nodes of its graph, those of subgraphs left out; 0 where there is no graph."""


@dataclass
class Onnx(FileFormat):
    """ONNX, run by onnxruntime.

    Attributes:
        dynamo: By torch's exporter of programs, or by the older one, of traces.
    """

    packages = ("onnx", "onnxscript", "onnxruntime")
    dynamo: bool = True

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """See ``FileFormat``."""
        onnx = _imported("onnx")
        options: dict[str, Any] = dict(input_names=[INPUT], output_names=[*request.outputs])
        if self.dynamo:
            options.update(opset_version=OPSET, external_data=False)
            options.update(dynamic_shapes=request.open_sizes)
        elif request.dynamic:
            options.update(dynamic_axes={INPUT: {0: "batch", 2: "height", 3: "width"}})
        with _quiet():
            torch.onnx.export(
                model, request.example, path, dynamo=self.dynamo, verbose=False, **options
            )
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in request.metadata.items()})
        onnx.save(proto, path)

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        runtime = _imported("onnxruntime")
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: tuple(map(torch.from_numpy, session.run(None, {INPUT: x.numpy()})))

    def nodes(self, path: Path) -> int:
        """See ``FileFormat``."""
        return len(_imported("onnx").load(path).graph.node)


class Program(FileFormat):
    """``torch.export``: a program of plain operators."""

    guarded = True

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """See ``FileFormat``."""
        program = _program(model, request)
        # torch wants its own ending of a name, but none of an open file.
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: request.text})

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        return _giving_tuples(self._read(path).module())

    def nodes(self, path: Path) -> int:
        """See ``FileFormat``."""
        return sum(node.op == "call_function" for node in self._read(path).graph.nodes)

    def _read(self, path: Path) -> ExportedProgram:
        with path.open("rb") as file, _quiet():
            return torch.export.load(file)


class CompiledPackage(FileFormat):
    """AOTInductor: a program compiled for this processor, with its weights."""

    guarded = True

    def require(self) -> None:
        """See ``FileFormat``."""
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise InputError(
                ".aot.pt2 needs a C++ compiler and there is none; install g++, or give a name that "
                "ends in .pt2, which needs none"
            ) from error

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """See ``FileFormat``."""
        inductor = _inductor()
        program = _program(model, request)
        with path.open("w+b") as file, _quiet():
            inductor.aoti_compile_and_package(
                program,
                package_path=file,
                inductor_configs={"aot_inductor.metadata": {METADATA: request.text}},
            )

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        with path.open("rb") as file, _quiet():
            return _giving_tuples(_inductor().aoti_load_package(file))

    def nodes(self, path: Path) -> int:
        """See ``FileFormat``."""
        return 0


class Trace(FileFormat):
    """``torch.jit.trace``: TorchScript, which leaves all sizes open in any case."""

    def write(self, model: nn.Module, path: Path, request: Request) -> None:
        """See ``FileFormat``."""
        with _quiet():
            trace = torch.jit.trace(model, request.example, check_trace=False)
            trace.save(str(path), _extra_files={METADATA: request.text})

    def load(self, path: Path) -> Run:
        """See ``FileFormat``."""
        return _giving_tuples(self._read(path))

    def nodes(self, path: Path) -> int:
        """See ``FileFormat``."""
        return len(list(self._read(path).inlined_graph.nodes()))

    def _read(self, path: Path) -> torch.jit.ScriptModule:
        with _quiet():
            return torch.jit.load(str(path))


# The longer one of two that fit comes first.
FORMATS: dict[str, FileFormat] = {
    ".onnx": Onnx(),
    ".aot.pt2": CompiledPackage(),
    ".pt2": Program(),
    ".pt": Trace(),
}


def ending_of(path: Path) -> str:
    """The one of ``FORMATS`` that a file name has.

    Raises:
        InputError: None.
    """
    for ending in FORMATS:
        if path.name.endswith(ending) and path.name != ending:
            return ending
    raise InputError(f"{path}: give a name that ends in {', '.join(FORMATS)}")


def _program(model: nn.Module, request: Request) -> ExportedProgram:
    """``torch.export``, once it is known to serve the inputs: a compiled one would not say."""
    with _quiet():
        program = torch.export.export(model, request.example, dynamic_shapes=request.open_sizes)
        run = program.module()
        for x in request.inputs[1:]:
            run(x)
    return program


def _inductor() -> Any:
    # Imported where it is used since it takes seconds.
    return importlib.import_module("torch._inductor")


def _giving_tuples(run: Callable[[Tensor], Any]) -> Run:
    def call(x: Tensor) -> Outputs:
        out = run(x)
        return (out,) if isinstance(out, Tensor) else tuple(out)

    return call


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.utils.cpp_extension")
    loggers = [logging.getLogger(name) for name in names]
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


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed, which .onnx needs; pip install 'acmix[onnx]'"
        ) from error
