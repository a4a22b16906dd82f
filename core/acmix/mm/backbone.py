"""What every backbone adds to its MMPretrain parent."""

from typing import TYPE_CHECKING, Any

from mmengine.model import PretrainedInit

from acmix.checkpoint import state_dict_of
from acmix.deploy import deploy
from acmix.mm.read import read_anywhere
from acmix.mm.weights import load_weights

if TYPE_CHECKING:  # its place among the parents gives it the methods of a module
    from mmengine.model import BaseModule as Module
else:
    Module = object


class ACmixBackbone(Module):
    """Mixin: ``init_cfg=dict(type='Pretrained', checkpoint=...)`` takes weights of any origin.

    Goes before the MMPretrain class among the parents. Own checkpoints, released ones and those of
    the plain baseline are read safely, renamed by the class's ``convert_state_dict``, and reported.
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
