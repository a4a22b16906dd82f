"""Aggregation of a neighbourhood."""

from operator_contract import SUMMED_BY_TILE, CpuContract
from operators import Aggregation


class TestAggregation(CpuContract):
    operator = Aggregation()
    threads = CpuContract.threads | SUMMED_BY_TILE
