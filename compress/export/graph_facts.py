"""What can be known about the tensors of an ONNX graph without running it."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.errors import UnsupportedModelError
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphFacts", "inner_reads", "opset_of", "type_name"]

SMALL = 1024  # entries
RENAMED = {"float": "float32", "double": "float64"}


class GraphFacts:
    """Types, shapes and constants of a graph, by tensor name; read once, when it is made.

    Attributes:
        types: element types, such as "float16"; tensors of unknown type are left out.
        shapes: sizes, None for those that are free or unknown; tensors of unknown rank are left
            out.
        constants: initializers and the values of Constant nodes.

    Raises:
        UnsupportedModelError: the graph is damaged.
    """

    def __init__(self, proto: "onnx.ModelProto") -> None:
        graph = _inferred(proto).graph
        self.types: dict[str, str] = {}
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in proto.graph.initializer}
        for node in proto.graph.node:
            value = _constant_value(node)
            if value is not None:
                self.constants[node.output[0]] = value
        for info in (*graph.input, *graph.value_info, *graph.output):
            self._learn(info)
        for name, tensor in self.constants.items():
            self.types[name] = type_name(tensor.data_type)
            self.shapes[name] = tuple(tensor.dims)

    def array(self, name: str) -> NDArray[np.generic] | None:
        """Return the value of a constant; None where there is none, or in another file."""
        numpy_helper = require("onnx.numpy_helper", "reading ONNX graphs")
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == tensor.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def rank(self, name: str) -> int | None:
        """Return the number of dimensions of a tensor; None where it is not known."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def _learn(self, info: "onnx.ValueInfoProto") -> None:
        kind = info.type.tensor_type
        if kind.elem_type:
            self.types[info.name] = type_name(kind.elem_type)
        if kind.HasField("shape"):
            self.shapes[info.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            )


def type_name(elem_type: int) -> str:
    """Return the name of an ONNX element type as numpy has it, such as "float32"."""
    onnx = require("onnx", "reading ONNX graphs")
    name = onnx.TensorProto.DataType.Name(elem_type).lower()
    return RENAMED.get(name, name)


def opset_of(proto: "onnx.ModelProto") -> int:
    """Return the version of the ONNX standard that a graph is written in."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)


def inner_reads(node: "onnx.NodeProto") -> Iterator[str]:
    """Give every name that the graphs inside a node read; names of their own are among them."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from inner_reads(inner)


def _inferred(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    shape_inference = require("onnx.shape_inference", "reading ONNX graphs")
    try:
        return shape_inference.infer_shapes(_without_weights(proto))
    except shape_inference.InferenceError as err:
        raise UnsupportedModelError(
            f"the graph is damaged ({err}); expected one that onnx.checker takes, so export the "
            "network again"
        ) from err


def _without_weights(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return the graph with its large constants as inputs: inference copies what it is given.

    Only small ones, such as the sizes of a Reshape, tell shapes by their values.
    """
    helper = require("onnx.helper", "reading ONNX graphs")
    graph, light = proto.graph, type(proto)()
    light.ir_version = proto.ir_version
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.node.extend(graph.node)
    light.graph.value_info.extend(graph.value_info)
    light.graph.output.extend(graph.output)
    light.graph.input.extend(graph.input)
    named = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in named:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(info)
    return light


def _constant_value(node: "onnx.NodeProto") -> "onnx.TensorProto | None":
    onnx = require("onnx", "reading ONNX graphs")
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in kinds:
        return None
    return onnx.numpy_helper.from_array(np.array(value, kinds[attribute.name]), node.output[0])
