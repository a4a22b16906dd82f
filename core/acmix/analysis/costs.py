"""Parameters and multiply-adds of every stage, by what they are for."""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from acmix.analysis.observing import layers_of, stage_of
from acmix.complexity import count_by_module, recorded_parts
from acmix.modules import ACmixBase

PARTS = ("projections", "attention", "convolution", "other")
# What is in no stage that has an ACmix layer: stem, neck and head.
REST = "rest"

_PART_OF = {
    **dict.fromkeys(("conv1", "conv2", "conv3", "qkv", "q", "kv", "sr", "norm"), "projections"),
    **dict.fromkeys(("fc", "dep_conv"), "convolution"),
    **dict.fromkeys((*ACmixBase.RATES, "offset"), "other"),
}


@dataclass
class StageCosts:
    """Costs of a stage, by the names in ``PARTS``.

    ``projections`` are shared by both paths; ``attention`` and ``convolution`` are what each path
    needs besides; ``other`` is all that is in no ACmix layer, and alpha and beta.

    Attributes:
        stage: Its name in the model, or ``REST``.
        parameters: Number of values, frozen ones too.
        multiply_adds: Of one image.
    """

    stage: str
    parameters: Counter[str] = field(default_factory=Counter)
    multiply_adds: Counter[str] = field(default_factory=Counter)


def stage_costs(model: nn.Module, input_size: tuple[int, ...] = (3, 224, 224)) -> list[StageCosts]:
    """Costs of every stage with ACmix layers, and of the rest.

    A stage is what has the same name up to the first number: ``layer1``, ``stages.0``. Layers are
    counted by the paper's Table 1, as in ``acmix.complexity``.

    Args:
        model: Takes one tensor (1, C, H, W).
        input_size: (C, H, W).

    Raises:
        InputError: The model has no ACmix layer.
    """
    layers = layers_of(model)
    stages = {stage_of(name): StageCosts(stage_of(name)) for name in layers}
    rest = StageCosts(REST)
    for name, parameter in model.named_parameters():
        costs = next((stages[s] for s in stages if _is_in(name, s)), rest)
        costs.parameters[_part_of(name, layers)] += parameter.numel()
    with recorded_parts(model) as parts:
        counts = count_by_module(model, input_size)
    for name, counted in parts.items():
        stages[stage_of(name)].multiply_adds.update(counted)
    for stage, costs in stages.items():
        whole = sum(counts[name] for name in _topmost(counts, stage))
        costs.multiply_adds["other"] = whole - sum(costs.multiply_adds.values())
    elsewhere = counts[""] - sum(sum(costs.multiply_adds.values()) for costs in stages.values())
    rest.multiply_adds["other"] = elsewhere
    return [*stages.values(), rest]


def _part_of(name: str, layers: dict[str, ACmixBase]) -> str:
    for layer in layers:
        if _is_in(name, layer):
            child = name.removeprefix(layer).removeprefix(".").split(".")[0]
            return _PART_OF.get(child, "attention")
    return "other"


def _topmost(counts: dict[str, int], stage: str) -> list[str]:
    """Modules of a stage that were called, without those that are in one of them."""
    found: list[str] = []
    for name in sorted(name for name in counts if _is_in(name, stage)):
        if not any(_is_in(name, other) for other in found):
            found.append(name)
    return found


def _is_in(name: str, holder: str) -> bool:
    return not holder or name == holder or name.startswith(f"{holder}.")
