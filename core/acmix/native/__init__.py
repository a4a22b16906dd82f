"""The compiled CPU library: building it from ``csrc/cpu`` and loading it through ctypes."""
