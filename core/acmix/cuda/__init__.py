"""How the CUDA kernels are named, compiled and launched, for ``backends/cuda_backend.py``."""
