"""``python -m acmix.info``: versions, whether the CPU kernels are built, who runs what."""

import importlib.util
import platform
from importlib import metadata

import torch

import acmix
from acmix.backends import BACKENDS
from acmix.backends.cpu import build, library

OPS = (
    "sliding_window_attention",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "convolution_path",
    "window_attention",
)
PACKAGES = (
    *("torch", "numpy", "torchvision", "mmengine", "mmcv", "mmcv-lite"),
    *("mmpretrain", "mmdet", "mmsegmentation"),
)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def versions() -> list[str]:
    """One line for each package and for the machine."""
    lines = [f"acmix {acmix.__version__}", f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name}: not installed")
    return [*lines, f"machine: {platform.machine()}, {torch.get_num_threads()} threads"]


def cpu_kernels() -> list[str]:
    """Where the library is, its variant and its compiler, or why there is none."""
    reason = library.problem()
    if reason is not None:
        return [f"CPU kernels: missing ({reason}); torch serves instead"]
    loaded = library.load()
    try:
        compiler = build.compiler_version(build.find_compiler())
    except build.BuildError:
        compiler = "none at hand now"
    return [
        f"CPU kernels: {loaded.path}",
        f"  variant {loaded.isa} of {', '.join(loaded.isas)}; compiler: {compiler}",
    ]


def accelerators() -> list[str]:
    """CUDA devices and CuPy."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cupy = "installed" if importlib.util.find_spec("cupy") else "not installed"
    return [f"CUDA devices: {', '.join(devices) or 'none'}", f"cupy: {cupy}"]


def backend_table() -> list[str]:
    """The backend that ``backend=None`` takes, an operator, device and dtype a line.

    Faster backends that were passed over stand behind it with their reasons.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    lines = []
    for op in OPS:
        for device in devices:
            for dtype in DTYPES:
                x = torch.empty(0, dtype=dtype, device=device)
                lines.append(f"  {op:26} {device:5} {str(dtype)[6:]:9} {_chosen(op, x)}")
    return lines


def _chosen(op: str, x: torch.Tensor) -> str:
    passed: list[str] = []
    for name, backend in BACKENDS.items():
        reasons = backend.why_not(op, x)
        if not reasons:
            return f"{name:10}{'; '.join(passed)}".rstrip()
        passed.append(f"not {name}: {', '.join(reasons)}")
    return f"{'none':10}{'; '.join(passed)}"


def main() -> None:
    """Print everything."""
    lines = [*versions(), *cpu_kernels(), *accelerators(), "backends:", *backend_table()]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
