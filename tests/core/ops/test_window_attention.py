"""Attention inside windows."""

from operator_contract import Contract
from operators import WindowAttention


class TestWindowAttention(Contract):
    operator = WindowAttention()
    backends = (None, "torch")
