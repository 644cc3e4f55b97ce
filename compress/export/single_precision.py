"""A float16 graph computed in float32: the same values by the same names, without its rounding.

What a half-precision graph hands from segment to segment has no counterpart in torch. Its float32
form tells what it would be, so that a segment can be fed and judged by itself.
"""

from typing import TYPE_CHECKING

import numpy as np

from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["in_single_precision"]


def in_single_precision(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return a graph with float32 in place of float16 everywhere.

    Args:
        proto: left as it is; weights keep the values that they were rounded to.

    Raises:
        ToolchainError: onnx is missing.
    """
    require("onnx", "computing a float16 graph in float32")
    result = type(proto)()
    result.CopyFrom(proto)
    _widen_(result.graph)
    return result


def _widen_(graph: "onnx.GraphProto") -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type == _half():
            kind.elem_type = _single()
    for tensor in graph.initializer:
        _widen_tensor_(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == _half():
                attribute.i = _single()
            if attribute.HasField("t"):
                _widen_tensor_(attribute.t)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _widen_(inner)


def _widen_tensor_(tensor: "onnx.TensorProto") -> None:
    numpy_helper = require("onnx.numpy_helper", "computing a float16 graph in float32")
    if tensor.data_type == _half():
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _half() -> int:
    return int(require("onnx", "reading ONNX graphs").TensorProto.FLOAT16)


def _single() -> int:
    return int(require("onnx", "reading ONNX graphs").TensorProto.FLOAT)
