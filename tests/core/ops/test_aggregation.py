"""Aggregation of a neighbourhood."""

from operator_contract import CpuContract
from operators import Aggregation


class TestAggregation(CpuContract):
    operator = Aggregation()
