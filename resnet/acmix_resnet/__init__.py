"""ResNet with ACmix for MMPretrain: importing it registers ``ACmixResNet``."""

from acmix.mm.projects import register_models
from acmix_resnet.backbone import ACmixResNet
from acmix_resnet.convert import convert_state_dict

__all__ = ["ACmixResNet", "convert_state_dict"]

register_models(__name__)
