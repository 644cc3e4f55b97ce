"""Which backend runs a bundle here."""

from pathlib import Path
from typing import List, Optional

from compress.errors import ToolchainError, UserInputError
from compress.runtime.backend import Backend
from compress.runtime.first_call import FIRST_CALL_SECONDS, check_seconds, within
from compress.runtime.manifest import Manifest
from compress.runtime.onnxruntime_session import PROVIDERS

__all__ = ["BACKENDS", "open_backend"]

BACKENDS = ("onnxruntime", "tensorrt")


def open_backend(
    name: Optional[str],
    bundle: Path,
    manifest: Manifest,
    *,
    threads: Optional[int] = None,
    provider: Optional[str] = None,
    first_call_seconds: float = FIRST_CALL_SECONDS,
    trust_engines: bool = False,
    wait: str = "spin",
) -> Backend:
    """Open a bundle in a backend.

    Args:
        name: one of `BACKENDS`; None takes TensorRT where the bundle has engines that a device of
            this machine can run, and no provider is named, else ONNX Runtime.
        bundle: its folder.
        manifest: of the bundle, checked.
        threads: of ONNX Runtime on the CPU; None leaves it to ONNX Runtime.
        provider: of ONNX Runtime, "cpu" or "cuda"; None takes "cuda" where it starts.
        first_call_seconds: that ONNX Runtime may take to open the segments and to run each once,
            on a blank image. TensorRT's engines were built, and so timed, on this machine.
        trust_engines: load engines that this user did not build on this machine, too.
        wait: for the GPU under TensorRT, a way of compress.runtime.cuda_wait.

    Raises:
        UserInputError: there is no such backend or provider, the engines are damaged or foreign
            or a stranger's, or a segment is not what the manifest says.
        ToolchainError: the backend is missing, cannot run the bundle, or does not end in time.
    """
    check_seconds(first_call_seconds, "--first-call-seconds")
    if provider is not None and provider not in PROVIDERS:
        raise UserInputError(
            f"provider is {provider!r}; expected one of {', '.join(sorted(PROVIDERS))}"
        )
    if name is None:
        has_engines = provider is None and (bundle / "engines.json").exists()
        name = "tensorrt" if has_engines and _has_cuda() else "onnxruntime"
    if name == "tensorrt" and provider is not None:
        raise UserInputError(
            f"provider is {provider}, which is one of ONNX Runtime, and the backend is tensorrt; "
            "leave one of them out"
        )
    if name == "tensorrt":
        from compress.runtime.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(bundle, manifest, trust_engines=trust_engines, wait=wait)
    if name == "onnxruntime":
        return _tried(bundle, manifest, threads, provider, first_call_seconds)
    raise UserInputError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")


def _tried(
    bundle: Path,
    manifest: Manifest,
    threads: Optional[int],
    provider: Optional[str],
    seconds: float,
) -> Backend:
    """Open a bundle in ONNX Runtime, and run every segment once."""
    from compress.runtime.onnxruntime_backend import OnnxRuntimeBackend

    opened: List[OnnxRuntimeBackend] = []

    def work() -> Backend:
        backend = OnnxRuntimeBackend(bundle, manifest, threads=threads, device=provider)
        opened.append(backend)
        backend.try_once()
        return backend

    def stop() -> None:
        for backend in opened:
            backend.interrupt()

    return within(seconds, work, f"the first call of bundle {bundle}", stop)


def _has_cuda() -> bool:
    from compress.runtime.cuda import probe_cuda

    try:
        probe_cuda()
    except ToolchainError:
        return False
    return True
