"""Attention inside windows."""

from operator_contract import ArgumentContract
from operators import WindowAttention


class TestWindowAttention(ArgumentContract):
    operator = WindowAttention()
    backends = ("torch",)
