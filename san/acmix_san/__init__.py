"""Self-attention network (SAN) with ACmix for MMPretrain: importing it registers ``ACmixSAN``."""

from acmix.mm.projects import register_models
from acmix_san.backbone import ACmixSAN
from acmix_san.convert import convert_state_dict

__all__ = ["ACmixSAN", "convert_state_dict"]

register_models(__name__)
