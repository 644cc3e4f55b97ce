"""Writes the nodes that replace one node of an ONNX graph."""

from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import UnsupportedModelError
from compress.export.graph_facts import GraphFacts, opset_of
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["NodeWriter"]

AXES_ARE_INPUT = 18  # opset from which ReduceMean takes its axes as an input


class NodeWriter:
    """Writes the nodes that replace one node."""

    def __init__(self, proto: "onnx.ModelProto", facts: GraphFacts, node: "onnx.NodeProto") -> None:
        self.helper = require("onnx.helper", "rewriting ONNX graphs")
        self.numpy_helper = require("onnx.numpy_helper", "rewriting ONNX graphs")
        self.opset = opset_of(proto)
        self.facts = facts
        self.node = node
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.given = {a.name: self.helper.get_attribute_value(a) for a in node.attribute}

    def constant(self, label: str, value: Any, dtype: Any) -> str:
        """Add an initializer; return its name."""
        name = f"{self.node.name}/{label}"
        self.constants.append(self.numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def emit(self, kind: str, *inputs: str, label: str, **attributes: Any) -> str:
        """Add a node; return the name of what it gives."""
        name = f"{self.node.name}/{label}"
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def mean(self, x: str, axes: list[int], *, label: str) -> str:
        """Add a ReduceMean that keeps its axes, as the graph's opset writes it."""
        if self.opset < AXES_ARE_INPUT:
            return self.emit("ReduceMean", x, label=label, axes=axes, keepdims=1)
        return self.emit(
            "ReduceMean", x, self.constant("axes", axes, np.int64), label=label, keepdims=1
        )

    def finish(self) -> None:
        """Let the last node give what the replaced one gave."""
        self.nodes[-1].output[0] = self.node.output[0]

    def fail(self, what: str) -> UnsupportedModelError:
        """Return the error that this node cannot be rewritten."""
        return UnsupportedModelError(
            f"node {self.node.name} ({self.node.op_type}) cannot be rewritten for the target: "
            f"{what}; export the network again, or choose another target"
        )
