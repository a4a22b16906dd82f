"""Demo: tools/demo.py CONFIG CHECKPOINT [flags], from any folder; see --help."""

import sys
from pathlib import Path

try:
    from acmix.mm.demo import demo
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed in {sys.executable}; run 'make install' first")
except ImportError as error:  # a library of the system is missing
    sys.exit(f"error: {error}")

if __name__ == "__main__":
    demo(Path(__file__).resolve().parents[1])
