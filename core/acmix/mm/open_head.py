"""A classifier's last layer whose number of classes a checkpoint says."""

from typing import Any

from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from acmix.errors import InputError


@MODELS.register_module()
class OpenLinearClsHead(LinearClsHead):
    """MMPretrain's ``LinearClsHead``; an open number of classes is that of the loaded weights.

    So a config for anyone's images builds a model before the data or the weights are seen.

    Args:
        num_classes: Number of classes; ``None`` waits for weights.
        in_channels: Channels of the features.
        **kwargs: Further arguments of ``LinearClsHead``.
    """

    num_classes: int | None
    fc: nn.Linear

    def __init__(self, num_classes: int | None, in_channels: int, **kwargs: Any) -> None:
        super().__init__(1 if num_classes is None else num_classes, in_channels, **kwargs)
        if num_classes is None:
            self.num_classes = None
            self.fc.weight, self.fc.bias = (
                nn.Parameter(parameter[:0].detach()) for parameter in (self.fc.weight, self.fc.bias)
            )

    def take_class_count(self, weight: Tensor | None) -> None:
        """Have as many classes as the weight of a last layer, (classes, channels), if open."""
        if self.num_classes is not None or weight is None:
            return
        self.num_classes = len(weight)
        own = self.fc.weight
        self.fc = nn.Linear(self.in_channels, len(weight), device=own.device, dtype=own.dtype)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Scores, (B, classes).

        Raises:
            InputError: The number of classes isn't known.
        """
        if self.num_classes is None:
            raise InputError(
                "num_classes=None: load a checkpoint, which says how many there are, or give the "
                "number as model.head.num_classes; this project's tools count the class folders"
            )
        return super().forward(feats)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        self.take_class_count(state_dict.get(f"{prefix}fc.weight"))
        super()._load_from_state_dict(state_dict, prefix, *args)


def open_heads(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Tell the open head of a model how many classes weights of the model's names have."""
    for name, module in model.named_modules():
        if isinstance(module, OpenLinearClsHead):
            module.take_class_count(weights.get(f"{name}.fc.weight"))
