"""How the CUDA kernels are named, compiled and launched; ``backends/cuda_backend.py`` calls them."""
