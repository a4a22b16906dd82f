"""Both paths on one set of projections, each by itself."""

from operator_contract import ArgumentContract
from operators import Paths


class TestPaths(ArgumentContract):
    operator = Paths()
