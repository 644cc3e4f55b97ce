"""Operators that a target does not know, said in those that it does.

- LayerNormalization (TensorRT 8.5): y = (x - mean) / sqrt(mean((x - mean)²) + ε) · γ + β, over the
  last axes. Half-precision graphs compute it in float32 from the first sum to the last product, as
  `stash_type` asks: squares of half-precision activations overflow at 256.
- Gelu (TensorRT 8): x/2 · (1 + erf(x/√2)), or its tanh form (Hendrycks & Gimpel, arXiv 1606.08415).
- Einsum of two tensors (no TensorRT takes all of them): a matrix product.
- Shape with start and end (TensorRT 8, which ignores both): the whole shape, then a Gather.

New names are the old one with what they are behind a slash, so that a builder can find, by
"/fp32/", the nodes that must not run in half precision.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.export.graph_facts import GraphFacts
from compress.export.lower_einsum import write_einsum
from compress.export.node_writer import NodeWriter
from compress.export.targets import Target

if TYPE_CHECKING:
    import onnx

__all__ = ["rewrite_operators_"]

DTYPES: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16}


def rewrite_operators_(proto: "onnx.ModelProto", target: Target) -> None:
    """Replace the operators of this module's docstring where the target does not take them.

    Raises:
        UnsupportedModelError: one of them is used in a way that has no replacement.
    """
    graph, facts = proto.graph, GraphFacts(proto)
    nodes = []
    for node in list(graph.node):
        write = _writer_for(node, target)
        if write is None:
            nodes.append(node)
            continue
        writer = NodeWriter(proto, facts, node)
        write(writer)
        writer.finish()
        nodes.extend(writer.nodes)
        graph.initializer.extend(writer.constants)
    del graph.node[:]
    graph.node.extend(nodes)


def _writer_for(node: "onnx.NodeProto", target: Target) -> Callable[[NodeWriter], None] | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    accepted = target.operator(node.op_type)
    if node.op_type == "LayerNormalization" and (accepted is None or target.opset < 17):
        return _layer_norm
    if node.op_type == "Gelu" and (accepted is None or target.opset < 20):
        return _gelu
    if node.op_type == "Einsum" and accepted is None:
        return write_einsum
    if node.op_type == "Shape" and accepted is not None:
        ignored = {a.name for a in node.attribute}.intersection(accepted.ignored_attributes)
        return _shape if ignored else None
    return None


def _dtype_of(writer: NodeWriter) -> str:
    dtype = writer.facts.types.get(writer.node.input[0], "unknown")
    if dtype not in DTYPES:
        raise writer.fail(f"its input is {dtype}, expected one of {', '.join(DTYPES)}")
    return dtype


def _layer_norm(writer: NodeWriter) -> None:
    x, gamma, *rest = writer.node.input
    half = _dtype_of(writer) == "float16"
    if half:
        x = writer.emit("Cast", x, label="fp32/input", to=1)
    axes = _norm_axes(writer)
    epsilon = writer.constant("epsilon", writer.given.get("epsilon", 1e-5), np.float32)
    mean = writer.mean(x, axes, label="fp32/mean")
    centred = writer.emit("Sub", x, mean, label="fp32/centred")
    squares = writer.emit("Mul", centred, centred, label="fp32/squares")
    variance = writer.mean(squares, axes, label="fp32/variance")
    shifted = writer.emit("Add", variance, epsilon, label="fp32/shifted")
    deviation = writer.emit("Sqrt", shifted, label="fp32/deviation")
    y = writer.emit("Div", centred, deviation, label="fp32/normalised")
    y = writer.emit("Mul", y, _in_float32(writer, gamma, "gamma"), label="fp32/scaled")
    if rest and rest[0]:
        y = writer.emit("Add", y, _in_float32(writer, rest[0], "beta"), label="fp32/moved")
    if half:
        writer.emit("Cast", y, label="output", to=10)


def _norm_axes(writer: NodeWriter) -> list[int]:
    """Return the axes of a LayerNormalization, from the end: any rank has them."""
    if any(writer.node.output[1:]):
        raise writer.fail("mean and deviation are read from it, which only itself can give")
    axis = writer.given.get("axis", -1)
    if axis >= 0:
        rank = writer.facts.rank(writer.node.input[0])
        if rank is None:
            raise writer.fail("the rank of its input is not known")
        axis -= rank
    return list(range(axis, 0))


def _in_float32(writer: NodeWriter, name: str, label: str) -> str:
    if writer.facts.types.get(name) == "float32":
        return name
    value = writer.facts.array(name)
    if value is None:
        return writer.emit("Cast", name, label=f"fp32/{label}", to=1)
    return writer.constant(label, value, np.float32)


def _gelu(writer: NodeWriter) -> None:
    dtype = DTYPES[_dtype_of(writer)]
    form = writer.given.get("approximate", b"none")
    x = writer.node.input[0]
    one, half = writer.constant("one", 1, dtype), writer.constant("half", 0.5, dtype)
    if form == b"tanh":
        inner = writer.emit("Tanh", _gelu_polynomial(writer, x, dtype), label="tanh")
    else:
        root = writer.constant("sqrt2", math.sqrt(2), dtype)
        inner = writer.emit("Erf", writer.emit("Div", x, root, label="scaled"), label="erf")
    shifted = writer.emit("Add", inner, one, label="shifted")
    share = writer.emit("Mul", half, shifted, label="share")
    writer.emit("Mul", x, share, label="output")


def _gelu_polynomial(writer: NodeWriter, x: str, dtype: Any) -> str:
    """Write √(2/π) · (x + 0.044715 x³)."""
    square = writer.emit("Mul", x, x, label="square")
    cube = writer.emit("Mul", square, x, label="cube")
    cubic = writer.emit("Mul", cube, writer.constant("cubic", 0.044715, dtype), label="cubic_term")
    total = writer.emit("Add", x, cubic, label="sum")
    root = writer.constant("root", math.sqrt(2 / math.pi), dtype)
    return writer.emit("Mul", total, root, label="argument")


def _shape(writer: NodeWriter) -> None:
    rank = writer.facts.rank(writer.node.input[0])
    if rank is None:
        raise writer.fail("the rank of its input is not known")
    start, end = writer.given.get("start", 0), writer.given.get("end", rank)
    places = writer.constant("places", range(rank)[start:end], np.int64)
    whole = writer.emit("Shape", writer.node.input[0], label="whole")
    writer.emit("Gather", whole, places, label="part", axis=0)
