"""What every backbone adds to its MMPretrain parent."""

from typing import TYPE_CHECKING, Any

from mmengine.model import PretrainedInit

from acmix.checkpoint import state_dict_of
from acmix.deploy import deploy
from acmix.mm.loading import hear_of_holders, rename_loaded
from acmix.mm.read import read_anywhere
from acmix.mm.weights import load_weights

if TYPE_CHECKING:  # its place among the parents gives it the methods of a module
    from mmengine.model import BaseModule as Module
else:
    Module = object


class ACmixBackbone(Module):
    """Mixin: weights of any origin, by ``load_state_dict`` and by ``init_cfg``.

    Goes before the MMPretrain class among the parents. Own checkpoints, released ones and those of
    the plain baseline are renamed by the class's ``convert_state_dict`` whoever loads them, into
    the backbone or into a model that has it as its ``backbone``. A file that
    ``init_cfg=dict(type='Pretrained', checkpoint=...)`` names is read safely, and reported.
    """

    init_cfg: Any

    def init_weights(self) -> None:
        """Initialise as MMPretrain does, or from the file that ``init_cfg`` names.

        Raises:
            CheckpointError: The file is no checkpoint or of another model.
        """
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        files = [cfg for cfg in cfgs if cfg["type"] in ("Pretrained", PretrainedInit)]
        self.init_cfg = [cfg for cfg in cfgs if cfg not in files]
        super().init_weights()
        for cfg in files:
            path = cfg["checkpoint"]
            load_weights(self, state_dict_of(read_anywhere(path), path), path)

    def switch_to_deploy(self) -> None:
        """Put the layers into their deploy form, as MMPretrain's tool for it asks of a backbone."""
        deploy(self)

    def train(self, mode: bool = True) -> "ACmixBackbone":
        """Set the mode and return the backbone, which MMPretrain's own ones do not."""
        super().train(mode)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        """Load weights of any origin."""
        rename_loaded(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


hear_of_holders(ACmixBackbone)
