"""With which software and on which machine a figure came to be; no host or user names."""

import os
import platform
from importlib import metadata
from pathlib import Path

import compress

__all__ = ["hardware", "versions"]

PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "torch-pruning", "thop")
CPU_INFO = Path("/proc/cpuinfo")


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, this package and the packages it measures with.

    Packages that are not installed are left out. Nothing heavy is imported.
    """
    installed = {package: _version_of(package) for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "early-exit-compress": compress.__version__,
        **{package: version for package, version in installed.items() if version is not None},
    }


def hardware() -> dict[str, str | int | None]:
    """Return the model of the CPU, its cores, torch's threads, and the CUDA device if there is one.

    Returns:
        cpu (model name), cores (those this process may use), torch_threads, cuda (name or None).
    """
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):  # "Model" on a Jetson
                return value.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
