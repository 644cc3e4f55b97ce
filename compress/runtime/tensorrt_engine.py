"""TensorRT 8.5 to 11 through one set of names: load an engine, check that it is the right one.

Only names that all of these versions have are used; where they differ, by looking for a name and
never by comparing versions. TensorRT-RTX has the same classes.
"""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, List, Sequence, Tuple

from compress.errors import ToolchainError, UserInputError
from compress.optional import require
from compress.runtime.manifest import Segment

__all__ = [
    "DTYPES",
    "activation_bytes",
    "check_engine",
    "context_without_activations",
    "import_tensorrt",
    "load_engine",
    "logger_of",
    "shares_profiles",
]

DTYPES = {  # TensorRT's names, of which version 8 has no INT64
    "float32": "FLOAT",
    "float16": "HALF",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
DYNAMIC = -1  # a size that TensorRT learns at run time

Tensor = Tuple[str, str, str, Tuple[Any, ...]]  # "takes" or "gives", name, dtype, shape with batch

log = logging.getLogger(__name__)


def import_tensorrt(builder: str) -> Any:
    """Import tensorrt or tensorrt_rtx.

    Raises:
        ToolchainError: it is not installed, or its libraries are missing.
    """
    try:
        return require(builder, "running engines on a GPU")
    except (ToolchainError, OSError) as err:  # OSError: its libraries are missing
        raise ToolchainError(
            f"{builder}, which built the engines, cannot be imported ({err.__cause__ or err}); on "
            "a Jetson use JetPack's python3-libnvinfer (a venv needs --system-site-packages), else "
            f"install NVIDIA's wheel: pip install {builder.replace('_', '-')}"
        ) from err


@lru_cache(maxsize=None)  # TensorRT keeps the first logger that it is given until the very end
def logger_of(trt: Any) -> Any:
    """Return TensorRT's way to our log; its own logger prints to stdout, where results go."""
    levels = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}

    class Logger(trt.ILogger):  # a class of the module that was given
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super() here

        def log(self, severity: Any, message: str) -> None:
            log.log(levels.get(severity.name, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


def load_engine(trt: Any, runtime: Any, path: Path) -> Any:
    """Return the engine of a file, whose sha256 and stamp were checked before.

    Raises:
        ToolchainError: TensorRT refuses it.
    """
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ToolchainError(
            f"TensorRT {trt.__version__} cannot load engine {path}; build the engines again with: "
            f"python -m compress.build_engines {path.parent} --force"
        )
    return engine


def check_engine(
    trt: Any, engine: Any, segment: Segment, batch: Tuple[int, int], path: Path
) -> bool:
    """Return whether the number of images may vary, once names, types and shapes are right.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        engine: deserialized.
        segment: what it should be.
        batch: smallest and largest number of images that it should take.
        path: of the engine, for messages.

    Raises:
        UserInputError: it is the engine of something else.
    """
    found = _tensors(trt, engine)
    taken = [spec.file_name for spec in segment.inputs]
    built = [shape[0] for _, name, _, shape in found if name in taken and shape]
    if not built or found != _expected(segment, built[0]):
        raise _foreign(path, _listed(found), _listed(_expected(segment, "B")))
    is_dynamic = built[0] == DYNAMIC
    for name in taken:
        low = high = built[0]
        if is_dynamic:
            low, _, high = [size[0] for size in engine.get_tensor_profile_shape(name, 0)]
        if low > batch[0] or high < batch[1]:
            raise _foreign(path, f"batches of {low} to {high}", f"{batch[0]} to {batch[1]}")
    return is_dynamic


def activation_bytes(engine: Any) -> int:
    """Return how much scratch memory a context of the engine needs on the device."""
    if hasattr(engine, "device_memory_size_v2"):  # from TensorRT 10 on
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def context_without_activations(trt: Any, engine: Any) -> Any:
    """Return a context that is given its scratch memory later; None where TensorRT refuses."""
    if hasattr(engine, "create_execution_context_without_device_memory"):  # until TensorRT 10
        return engine.create_execution_context_without_device_memory()
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def shares_profiles(trt: Any) -> bool:
    """Whether several contexts may use the one profile that our engines have.

    TensorRT 10 and newer always share it; 8.6 does where the engine was built so, as ours are.
    """
    preview = getattr(trt, "PreviewFeature", None)
    is_told = preview is not None and hasattr(preview, "PROFILE_SHARING_0806")
    return is_told or hasattr(trt, "ExecutionContextAllocationStrategy")


def _tensors(trt: Any, engine: Any) -> List[Tensor]:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return sorted((_tensor(trt, engine, name) for name in names), key=_by_name)


def _tensor(trt: Any, engine: Any, name: str) -> Tensor:
    names = {told: dtype for dtype, told in DTYPES.items()}
    way = "takes" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "gives"
    dtype = engine.get_tensor_dtype(name).name
    return way, name, names.get(dtype, dtype), tuple(engine.get_tensor_shape(name))


def _expected(segment: Segment, batch: Any) -> List[Tensor]:
    sides = (("takes", segment.inputs), ("gives", segment.outputs))
    tensors = [
        (way, s.file_name, s.dtype, (batch, *s.shape)) for way, specs in sides for s in specs
    ]
    return sorted(tensors, key=_by_name)


def _by_name(tensor: Tensor) -> str:
    return tensor[1]


def _listed(tensors: Sequence[Tensor]) -> str:
    shapes = [(way, name, dtype, ", ".join(map(str, shape))) for way, name, dtype, shape in tensors]
    return ", ".join(f"{way} {name} {dtype} ({shape})" for way, name, dtype, shape in shapes)


def _foreign(path: Path, found: str, expected: str) -> UserInputError:
    return UserInputError(
        f"engine {path} is not of this bundle ({found}; expected {expected}); build the engines "
        f"again with: python -m compress.build_engines {path.parent} --force"
    )
