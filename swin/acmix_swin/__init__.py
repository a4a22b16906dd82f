"""Swin Transformer with ACmix for MMPretrain: importing it registers ``ACmixSwinTransformer``."""

from acmix.mm.projects import register_models
from acmix_swin.backbone import ACmixSwinTransformer
from acmix_swin.convert import convert_state_dict

__all__ = ["ACmixSwinTransformer", "convert_state_dict"]

register_models(__name__)
