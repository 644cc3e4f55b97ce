"""Which backend runs a bundle here."""

from pathlib import Path
from typing import Optional

from compress.errors import ToolchainError, UserInputError
from compress.runtime.backend import Backend
from compress.runtime.manifest import Manifest

__all__ = ["BACKENDS", "open_backend"]

BACKENDS = ("onnxruntime", "tensorrt")


def open_backend(
    name: Optional[str], bundle: Path, manifest: Manifest, *, threads: Optional[int] = None
) -> Backend:
    """Open a bundle in a backend.

    Args:
        name: one of `BACKENDS`; None takes TensorRT where the bundle has engines that a device of
            this machine can run, else ONNX Runtime.
        bundle: its folder.
        manifest: of the bundle, checked.
        threads: of ONNX Runtime on the CPU; None leaves it to ONNX Runtime.

    Raises:
        UserInputError: there is no such backend, or the engines are damaged or foreign.
        ToolchainError: the backend is missing, or cannot run the bundle.
    """
    if name is None:
        name = "tensorrt" if (bundle / "engines.json").exists() and _has_cuda() else "onnxruntime"
    if name == "tensorrt":
        from compress.runtime.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(bundle, manifest)
    if name == "onnxruntime":
        from compress.runtime.onnxruntime_backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(bundle, manifest, threads=threads)
    raise UserInputError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")


def _has_cuda() -> bool:
    from compress.runtime.cuda import probe_cuda

    try:
        probe_cuda()
    except ToolchainError:
        return False
    return True
