"""Analyze: tools/analyze.py CONFIG CHECKPOINT --out DIR [flags], from any folder; see --help."""

import sys
from pathlib import Path

try:
    from acmix.mm.analyze import analyze_model
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in {sys.executable}; run 'make install' first")
except ImportError as error:  # a library of the system is missing
    sys.exit(f"error: {error}")

if __name__ == "__main__":
    analyze_model(Path(__file__).resolve().parents[1])
