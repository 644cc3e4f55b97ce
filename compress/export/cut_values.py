"""What the values of a graph are, seen by running it: their types, and their shapes an image.

Shapes that are inferred end at the first Reshape to a computed size; what a run gives is certain.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ToolchainError
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["Seen", "observed"]

SIZES = (2, 3)  # two batches tell a dimension of images from one that is of this size by chance


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A value as it was seen.

    Attributes:
        dtype: as numpy names it.
        shape: of one image; None where the first dimension is not that of the images.
    """

    dtype: str
    shape: tuple[int, ...] | None


def observed(
    proto: "onnx.ModelProto", names: Collection[str], images: NDArray[np.float32]
) -> dict[str, Seen]:
    """Run a graph, and return what its values are.

    Args:
        proto: takes one tensor, for a free number of images or for one.
        names: of values that it computes.
        images: at least one.

    Raises:
        ToolchainError: ONNX Runtime is missing or cannot run the graph.
    """
    wanted = sorted(names)
    if not wanted:
        return {}
    session = _session(proto, wanted)
    (taken,) = proto.graph.input
    batch = taken.type.tensor_type.shape.dim[0]
    sizes = (batch.dim_value,) if batch.HasField("dim_value") else SIZES
    runs = [
        session.run(wanted, {taken.name: np.resize(images, (size, *images.shape[1:]))})
        for size in sizes
    ]
    return {name: _seen(sizes, values) for name, *values in zip(wanted, *runs, strict=True)}


def _seen(sizes: Collection[int], values: Collection[NDArray[Any]]) -> Seen:
    shapes = [array.shape for array in values]
    rows = all(shape[:1] == (size,) for shape, size in zip(shapes, sizes, strict=True))
    (first, *_) = values
    is_same = len({shape[1:] for shape in shapes}) == 1
    return Seen(dtype=str(first.dtype), shape=first.shape[1:] if rows and is_same else None)


def _session(proto: "onnx.ModelProto", names: Collection[str]) -> Any:
    ort = require("onnxruntime", "cutting ONNX graphs")
    onnx = require("onnx", "cutting ONNX graphs")
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # No fusion may do away with a value that is asked for, and one run is not worth any.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as err:  # ONNX Runtime has a class of its own per status code
        raise ToolchainError(
            f"ONNX Runtime {ort.__version__} cannot run the exported graph "
            f"({' '.join(str(err).split())[:300]}); export the network again"
        ) from err
