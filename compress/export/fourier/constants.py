"""What tensors are known to hold: constants, and what small computations make of constants.

Exporters compute the length of a transform or a window in the graph, from shapes and constants.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.graph_facts import GraphFacts
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["Known"]

LARGEST = 1 << 22  # values; nothing that is looked up here is larger
DEEPEST = 64
FREE = -(1 << 60)  # stands for a size that is not known, in what is computed of a shape
MOVING = ("Concat", "Gather", "Identity", "Slice", "Squeeze", "Unsqueeze")  # may carry it along
FOLDED_NAMES = """
    Add Cast Concat ConstantOfShape Cos Div Equal Expand Floor Gather HannWindow
    HammingWindow Identity Max Min Mod Mul Neg Not Pow Range Reciprocal ReduceProd ReduceSum
    Reshape Sin Slice Sqrt Squeeze Sub Transpose Unsqueeze Where BlackmanWindow Pad
"""
FOLDED = frozenset(FOLDED_NAMES.split())


class Known:
    """Looks tensors up by name.

    Args:
        graph: whose nodes are computed where they hang on constants alone.
        facts: about it.
    """

    def __init__(self, proto: "onnx.ModelProto", facts: GraphFacts) -> None:
        self.facts = facts
        self._opsets = list(proto.opset_import)
        self._makers = {name: node for node in proto.graph.node for name in node.output if name}
        self._found: dict[str, NDArray[Any] | None] = {}

    def array(self, name: str) -> NDArray[Any] | None:
        """Return what a tensor holds in every run; None where that is not known."""
        value = self._array(name, 0)
        return None if value is None or _is_partly_free(value) else value

    def integer(self, name: str) -> int | None:
        """Return the one whole number that a tensor holds; None where it is not known."""
        value = self.array(name)
        return int(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def integers(self, name: str) -> list[int] | None:
        """Return the whole numbers that a tensor holds; None where they are not known."""
        value = self.array(name)
        return None if value is None else [int(n) for n in value.reshape(-1)]

    def _array(self, name: str, depth: int) -> NDArray[Any] | None:
        if name not in self._found:
            value = self.facts.array(name)
            node = self._makers.get(name)
            if value is None and node is not None and depth < DEEPEST:
                value = self._computed(node, name, depth)
            self._found[name] = value
        return self._found[name]

    def _computed(self, node: "onnx.NodeProto", name: str, depth: int) -> NDArray[Any] | None:
        if node.op_type == "Shape" and node.domain in ("", "ai.onnx"):
            return self._shape(node)
        if node.op_type not in FOLDED or len(node.output) != 1:
            return None
        values = {n: self._array(n, depth + 1) for n in node.input if n}
        if any(v is None or v.size > LARGEST for v in values.values()):
            return None
        if node.op_type not in MOVING and any(
            _is_partly_free(v) for v in values.values() if v is not None
        ):
            return None
        return self._run(node, name, values)

    def _run(self, node: "onnx.NodeProto", name: str, values: dict[str, Any]) -> Any:
        onnx = require("onnx", "reading ONNX graphs")
        reference = require("onnx.reference", "reading ONNX graphs")
        empty = onnx.TypeProto()
        made = onnx.helper.make_graph(
            [node],
            "constant",
            [
                onnx.helper.make_tensor_value_info(
                    n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
                )
                for n, v in values.items()
            ],
            [onnx.helper.make_value_info(name, empty)],
        )
        model = onnx.helper.make_model(made, opset_imports=self._opsets)
        try:
            return reference.ReferenceEvaluator(model).run(None, values)[0]
        except Exception:  # whatever numpy raises: then it is not known
            return None

    def _shape(self, node: "onnx.NodeProto") -> NDArray[Any] | None:
        shape = self.facts.shapes.get(node.input[0])
        if shape is None:
            return None
        given = {a.name: a.i for a in node.attribute}
        part = shape[given.get("start", 0) : given.get("end", len(shape))]
        return np.array([FREE if n is None else n for n in part], np.int64)


def _is_partly_free(value: NDArray[Any]) -> bool:
    return value.dtype == np.int64 and bool((value == FREE).any())
