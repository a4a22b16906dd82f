"""Refuse a Python that the packages don't support, before anything is installed."""

import sys

if sys.version_info < (3, 11):
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"error: Python {found} is too old; run make with PYTHON=python3.11 or newer")
