"""What the ACmix layers of any trained model do: rates, attention, both paths, reach and costs."""

from acmix.analysis.attention import AttentionMaps, attention_maps
from acmix.analysis.costs import PARTS, StageCosts, stage_costs
from acmix.analysis.curves import Curves, read_curves
from acmix.analysis.paths import PathMaps, path_maps
from acmix.analysis.rates import MixingRates, mixing_rates
from acmix.analysis.receptive_field import contributing_side, effective_receptive_field
from acmix.analysis.report import write_report
from acmix.analysis.summary import Analysis, analyze

__all__ = [
    "Analysis",
    "AttentionMaps",
    "Curves",
    "MixingRates",
    "PARTS",
    "PathMaps",
    "StageCosts",
    "analyze",
    "attention_maps",
    "contributing_side",
    "effective_receptive_field",
    "mixing_rates",
    "path_maps",
    "read_curves",
    "stage_costs",
    "write_report",
]
