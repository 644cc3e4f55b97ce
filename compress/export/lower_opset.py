"""A graph in an older opset.

Most operators are the same in both. Where one changed, what the newer form says is said in the
older one: axes of reductions and sizes of Split move between attribute and input, attributes that
only state the default are dropped. What cannot be said is an error, never a guess.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.errors import UnsupportedModelError
from compress.export.graph_facts import GraphFacts, opset_of
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["to_opset_"]

ONNX_TYPES = {"float32": "float", "float64": "double"}


def to_opset_(proto: "onnx.ModelProto", opset: int) -> None:
    """Rewrite a graph for an older opset; one that is as old already stays as it is.

    Raises:
        UnsupportedModelError: a node says something that the older opset cannot.
    """
    newest = opset_of(proto)
    if newest <= opset:
        return
    change = _Change(proto, newest, opset)
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx"):
            change.rewrite_(node)
    proto.graph.initializer.extend(change.constants)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset


class _Change:
    """From opset `newest` to `opset`."""

    def __init__(self, proto: "onnx.ModelProto", newest: int, opset: int) -> None:
        self.onnx = require("onnx", "rewriting ONNX graphs")
        self.newest, self.opset = newest, opset
        self.facts = GraphFacts(proto)
        self.constants: list[onnx.TensorProto] = []

    def rewrite_(self, node: "onnx.NodeProto") -> None:
        older, newer = self._schema(node, self.opset), self._schema(node, self.newest)
        if older is None:
            raise self._error(node, "the operator does not exist there")
        if newer is None or newer.since_version == older.since_version:
            return
        if "axes" in older.attributes and "axes" not in newer.attributes:
            self._axes_to_attribute_(node)
        elif node.op_type == "Split":
            self._sizes_to_input_(node)
        self._drop_defaults_(node, older, newer)
        self._check_fits(node, older)

    def _axes_to_attribute_(self, node: "onnx.NodeProto") -> None:
        name = node.input[1] if len(node.input) > 1 else ""
        axes = self.facts.array(name)
        if name and axes is None:
            raise self._error(node, f"its axes {name} are computed")
        given = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        _drop_attribute_(node, "noop_with_empty_axes")
        del node.input[1:]
        if axes is not None and axes.size:
            values = [int(axis) for axis in axes.reshape(-1)]
            node.attribute.append(self.onnx.helper.make_attribute("axes", values))
        elif given.get("noop_with_empty_axes"):
            node.op_type = "Identity"
            del node.attribute[:]

    def _sizes_to_input_(self, node: "onnx.NodeProto") -> None:
        given = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        parts = given.get("num_outputs")
        if parts is None:
            return
        shape = self.facts.shapes.get(node.input[0])
        length = shape[given.get("axis", 0)] if shape else None
        if length is None:
            raise self._error(node, "the length that it splits is not known")
        step = -(-length // parts)
        sizes = [max(0, min(step, length - i * step)) for i in range(parts)]
        name = f"{node.name}/sizes"
        self.constants.append(self.onnx.helper.make_tensor(name, 7, [parts], sizes))
        node.input[:] = [node.input[0], name]
        _drop_attribute_(node, "num_outputs")

    def _drop_defaults_(self, node: "onnx.NodeProto", older: Any, newer: Any) -> None:
        for attribute in [a for a in node.attribute if a.name not in older.attributes]:
            value = self.onnx.helper.get_attribute_value(attribute)
            if not _is_default(newer.attributes, attribute.name, value, self.onnx.helper):
                raise self._error(node, f"its attribute {attribute.name} is {value}")
            node.attribute.remove(attribute)

    def _check_fits(self, node: "onnx.NodeProto", older: Any) -> None:
        if len(node.input) > older.max_input:
            raise self._error(node, f"it has {len(node.input)} inputs")
        kinds = {c.type_param_str: set(c.allowed_type_strs) for c in older.type_constraints}
        for i, name in enumerate(node.input):
            formal = older.inputs[min(i, len(older.inputs) - 1)]
            known = self.facts.types.get(name)
            allowed = kinds.get(formal.type_str, {formal.type_str})
            if known and f"tensor({ONNX_TYPES.get(known, known)})" not in allowed:
                raise self._error(node, f"its input {name} is {known}")

    def _schema(self, node: "onnx.NodeProto", opset: int) -> Any:
        try:
            return self.onnx.defs.get_schema(node.op_type, opset)
        except self.onnx.defs.SchemaError:
            return None

    def _error(self, node: "onnx.NodeProto", what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"node {node.name} ({node.op_type}) cannot be written in opset {self.opset}: {what}, "
            f"which needs an opset up to {self.newest}; choose a newer target"
        )


def _is_default(attributes: Mapping[str, Any], name: str, value: Any, helper: Any) -> bool:
    if name == "dilations":  # its default depends on the rank and is not in the schema
        return all(step == 1 for step in value)
    default = attributes[name].default_value
    return bool(default.name) and helper.get_attribute_value(default) == value


def _drop_attribute_(node: "onnx.NodeProto", name: str) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
