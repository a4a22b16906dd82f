"""Pyramid Vision Transformer with ACmix for MMPretrain: importing it registers ``ACmixPVT``."""

from acmix.mm.projects import register_models
from acmix_pvt.backbone import ACmixPVT
from acmix_pvt.convert import convert_state_dict

__all__ = ["ACmixPVT", "convert_state_dict"]

register_models(__name__)
