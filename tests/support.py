"""Helpers that tests of several packages share."""

import copy
import json
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from acmix.modules import ACmixBase
from forks import run_python

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def golden(name: str):
    """A tensor file made by the authors' released code or by an original model."""
    return torch.load(GOLDEN / name, weights_only=True)


def golden_weights(name: str, model: str) -> dict[str, Tensor]:
    """Zeros under the names and in the shapes that a layout file lists for a model."""
    layout = json.loads((GOLDEN / name).read_text())[model]
    return {key: torch.zeros(shape) for key, shape in layout.items()}


def build_model(config: Path) -> nn.Module:
    """The model of a config file, in the scope of its library."""
    # Not above: tests of the core run with torch alone.
    from mmengine.config import Config
    from mmengine.registry import MODELS

    cfg = Config.fromfile(config)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


def run_tool(project, tool, *arguments, cwd, check=True, processes=1):
    """Run ``tools/<tool>.py`` of a project as a user does, or as torchrun in several processes."""
    environments = [{}]
    if processes > 1:
        shared = dict(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
        ranks = map(str, range(processes))
        environments = [dict(shared, RANK=rank, LOCAL_RANK=rank) for rank in ranks]
    script = ROOT / project / "tools" / f"{tool}.py"
    result = run_python(script, *arguments, cwd=cwd, environments=environments)
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def free_port() -> str:
    """A port where processes of this machine can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def scrambled(network: nn.Module, mean: float = 0.05, std: float = 0.2) -> nn.Module:
    """The network in evaluation with random parameters and statistics, none at its start."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean, std)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return network.eval()


def gradients(function: Callable, *inputs, **options) -> tuple[Tensor, list[Tensor | None]]:
    """Output and gradients of the inputs, under an output gradient that depends on shape alone."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves, **options)
    generator = torch.Generator().manual_seed(out.numel())
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    out.backward(weight)
    return out.detach(), [None if x is None else x.grad for x in leaves]


def assert_within_error_budget(
    fast: Callable, plain: Callable, inputs: list[Tensor | None], dtype: torch.dtype, options: dict
) -> None:
    """Errors of ``fast`` in ``dtype`` are at most twice those of ``plain`` in the same dtype.

    That is, their root mean square, and the largest is at most four times theirs. Both are measured
    against ``plain`` in float64 on the same rounded inputs; the floor is one rounding of the values
    that is measured likewise.
    """
    rounded = [x if x is None else x.to(dtype) for x in inputs]
    widened = [x if x is None else x.double() for x in rounded]
    exact, exact_grads = gradients(plain, *widened, **options)
    plain_out, plain_grads = gradients(plain, *rounded, **options)
    fast_out, fast_grads = gradients(fast, *rounded, **options)
    assert fast_out.dtype == dtype
    names = ["output"] + [f"gradient of input {i}" for i in range(len(inputs))]
    columns = ([exact, *exact_grads], [plain_out, *plain_grads], [fast_out, *fast_grads])
    for name, truth, theirs, ours in zip(names, *columns, strict=True):
        if truth is None:
            continue
        _assert_in_budget(name, truth, theirs, ours, dtype)


def assert_module_within_error_budget(module: nn.Module, inputs: tuple, dtype: torch.dtype) -> None:
    """Output and input gradient in ``dtype``: errors at most twice those of plain torch.

    Both are measured against double precision, with weights and input rounded alike.
    """
    rounded = copy.deepcopy(module).to(dtype)
    plain = copy.deepcopy(rounded)
    for layer in plain.modules():
        if isinstance(layer, ACmixBase):
            layer.backend = "torch"
    exact, x = copy.deepcopy(plain).double(), inputs[0].to(dtype)

    def run(network: nn.Module, image: Tensor) -> list[Tensor]:
        out, grads = gradients(lambda t: _first(network(t, *inputs[1:])), image)
        return [out, *grads]

    results = run(exact, x.double()), run(plain, x), run(rounded, x)
    for name, truth, theirs, ours in zip(("output", "gradient"), *results, strict=True):
        assert ours.dtype == dtype
        _assert_in_budget(name, truth, theirs, ours, dtype)


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _assert_in_budget(
    name: str, truth: Tensor, theirs: Tensor, ours: Tensor, dtype: torch.dtype
) -> None:
    our_errors, their_errors = (x.double() - truth for x in (ours, theirs))
    # The largest of a few hundred errors is chance, and may be three times another that is as good.
    kinds = {"mean square": (_root_mean_square, 2), "largest": (lambda x: x.abs().max(), 4)}
    # So is that of a single number, the sum of thousands of terms: another's may be right by luck.
    roundings = 1 if truth.numel() > 1 else 4
    for kind, (measure, factor) in kinds.items():
        floor = roundings * torch.finfo(dtype).eps * measure(truth)
        error, budget = measure(our_errors), factor * measure(their_errors) + floor
        assert error <= budget, f"{name}: {kind} error {error:.3g} above the budget {budget:.3g}"


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
