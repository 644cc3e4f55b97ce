"""Writes the nodes that take the place of Fourier transforms, and keeps them few.

Shapes are carried along, None for sizes that are free. Reshapes of reshapes and transposes of
transposes are written as one, or as none.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UnsupportedModelError
from compress.export.graph_facts import GraphFacts
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["Shape", "Writer"]

Shape = tuple[int | None, ...]
FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16}


class Writer:
    """Nodes and constants in the order in which they are written.

    Args:
        facts: about the graph that is rewritten; shapes of new tensors are added.
        opset: of the graph.
    """

    def __init__(self, facts: GraphFacts, opset: int) -> None:
        self.helper = require("onnx.helper", "rewriting ONNX graphs")
        self.numpy_helper = require("onnx.numpy_helper", "rewriting ONNX graphs")
        self.facts = facts
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.place: onnx.NodeProto | None = None  # the node that is replaced
        self._stored: dict[tuple[Any, ...], str] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._makers: dict[str, tuple[str, str, Any]] = {}
        self._taken: set[str] = set()

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor, whose rank must be known."""
        shape = self.facts.shapes.get(name)
        if shape is None:
            raise self.fail(f"the rank of {name} is not known")
        return shape

    def dtype(self, name: str) -> Any:
        """Return the floating type of a tensor as numpy has it."""
        kind = self.facts.types.get(name, "float32")
        if kind not in FLOATS:
            raise self.fail(f"{name} is {kind}, and transforms of {', '.join(FLOATS)} are written")
        return FLOATS[kind]

    def constant(self, value: Any, label: str) -> str:
        """Store an array, once for all that ask for an equal one; return its name."""
        array = np.ascontiguousarray(value)
        array = array.reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._stored:
            name = self._name(label)
            self.constants.append(self.numpy_helper.from_array(array, name))
            self._stored[key] = name
            self.facts.constants[name] = self.constants[-1]
            self.facts.shapes[name] = array.shape
            self.facts.types[name] = str(array.dtype)
        return self._stored[key]

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: Shape | None,
        label: str,
        *,
        like: str | None = None,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Write a node; the same one is not written twice. Return the name of what it gives.

        Args:
            kind: ONNX operator.
            inputs: names.
            shape: of what it gives.
            label: that its name ends with.
            like: tensor whose element type it has; None is the first input.
            output: name that it must have.
            attributes: of the operator.
        """
        key = (kind, *inputs, *sorted((k, str(v)) for k, v in attributes.items()))
        if output is None and key in self._made:
            return self._made[key]
        name = output or self._name(label)
        node_name = self._name(label) if output else name
        self.nodes.append(
            self.helper.make_node(kind, list(inputs), [name], node_name, **attributes)
        )
        if shape is not None:
            self.facts.shapes[name] = shape
        self.facts.types[name] = self.facts.types.get(like or inputs[0], "float32")
        self._made.setdefault(key, name)
        return name

    def matmul(self, left: str, right: str, label: str) -> str:
        """Write a matrix product over the last two axes."""
        a, b = self.shape(left), self.shape(right)
        lead = (a if len(a) >= len(b) else b)[:-2]
        like = right if left in self.facts.constants else left
        return self.emit("MatMul", [left, right], (*lead, a[-2], b[-1]), label, like=like)

    def add(self, left: str, right: str, label: str) -> str:
        """Write a sum of two tensors of one shape."""
        return self.emit("Add", [left, right], self.shape(left), label)

    def scaled(self, x: str, values: NDArray[np.float64], label: str) -> str:
        """Write a product with an array that has the last axes of x."""
        factor = self.constant(np.asarray(values, self.dtype(x)), f"{label}/factor")
        return self.emit("Mul", [x, factor], self.shape(x), label)

    def negative(self, x: str, label: str) -> str:
        """Write -x."""
        return self.emit("Neg", [x], self.shape(x), label)

    def reshape(self, x: str, shape: Shape, label: str) -> str:
        """Write a reshape; sizes that are free stay in their places from the left.

        Raises:
            UnsupportedModelError: more than one size could be anything.
        """
        kind, source, _ = self._makers.get(x, ("", "", None))
        if kind == "Reshape" and self._sizes(source, shape) is not None:
            x = source
        old = self.shape(x)
        if old == shape and sum(n is None for n in shape) <= 1:
            return x
        sizes = self._sizes(x, shape)
        if sizes is None:
            raise self.fail(f"its sizes {_listed(old)} are free in more than one place")
        name = self.emit(
            "Reshape", [x, self.constant(np.array(sizes, np.int64), "shape")], shape, label
        )
        self._makers[name] = ("Reshape", x, None)
        return name

    def transpose(self, x: str, order: Sequence[int], label: str) -> str:
        """Write a transpose."""
        kind, source, inner = self._makers.get(x, ("", "", None))
        if kind == "Transpose":
            x, order = source, [inner[axis] for axis in order]
        if list(order) == sorted(order):
            return x
        old = self.shape(x)
        name = self.emit("Transpose", [x], tuple(old[i] for i in order), label, perm=list(order))
        self._makers[name] = ("Transpose", x, list(order))
        return name

    def squeezed(self, x: str, axis: int, label: str) -> str:
        """Write x without an axis of length 1."""
        shape = self.shape(x)
        axis %= len(shape)
        kind, source, place = self._makers.get(x, ("", "", None))
        if kind == "Unsqueeze" and place == axis:
            return source
        axes = self.constant(np.array([axis], np.int64), "axis")
        return self.emit("Squeeze", [x, axes], shape[:axis] + shape[axis + 1 :], label)

    def unsqueezed(self, x: str, axis: int, label: str, *, output: str | None = None) -> str:
        """Write x with a new axis of length 1 at a place."""
        shape = self.shape(x)
        axes = self.constant(np.array([axis], np.int64), "axis")
        new = (*shape[:axis], 1, *shape[axis:])
        name = self.emit("Unsqueeze", [x, axes], new, label, output=output)
        self._makers[name] = ("Unsqueeze", x, axis)
        return name

    def sliced(self, x: str, start: int, stop: int, axis: int, label: str) -> str:
        """Write x from start to stop along an axis."""
        shape = self.shape(x)
        if (start, stop) == (0, shape[axis]):
            return x
        bounds = [self.constant(np.array([n], np.int64), "bound") for n in (start, stop, axis)]
        new = (*shape[:axis], stop - start, *shape[axis + 1 :])
        return self.emit("Slice", [x, *bounds], new, label)

    def padded(self, x: str, before: int, behind: int, axis: int, label: str) -> str:
        """Write x with zeros before and behind it along an axis."""
        if before == behind == 0:
            return x
        shape = self.shape(x)
        pads = np.zeros((2, len(shape)), np.int64)
        pads[:, axis] = before, behind
        old = shape[axis]
        new = None if old is None else old + before + behind
        inputs = [x, self.constant(pads.reshape(-1), "pads")]
        return self.emit("Pad", inputs, (*shape[:axis], new, *shape[axis + 1 :]), label)

    def concatenated(self, parts: Sequence[str], axis: int, label: str, **keywords: Any) -> str:
        """Write parts one behind the other along an axis."""
        shapes = [self.shape(part) for part in parts]
        sizes = [shape[axis] for shape in shapes]
        whole = None if None in sizes else sum(n or 0 for n in sizes)
        shape = (*shapes[0][:axis], whole, *shapes[0][axis + 1 :])
        return self.emit("Concat", parts, shape, label, axis=axis, **keywords)

    def fail(self, what: str, *, remedy: str = "") -> UnsupportedModelError:
        """Return the error that the node in hand has no form in real products."""
        node = self.place
        where = "the graph" if node is None else f"node {node.name} ({node.op_type}{_module(node)})"
        remedy = remedy or "export the network again for one fixed size, the batch alone left free"
        return UnsupportedModelError(
            f"{where} cannot be written as real matrix products: {what}; {remedy}"
        )

    def _sizes(self, x: str, shape: Shape) -> list[int] | None:
        """Return what a Reshape node of x to `shape` is told; None where nothing tells it."""
        old = self.shape(x)
        sizes = []
        for axis, n in enumerate(shape):
            if n is not None:
                sizes.append(n)
            elif axis < len(old) and old[axis] is None and _same_before(old, shape, axis):
                sizes.append(0)
            else:
                sizes.append(-1)
        if sizes.count(-1) > 1:
            return None
        if sizes.count(0) == 1 and -1 not in sizes and sum(n is None for n in old) == 1:
            sizes[sizes.index(0)] = -1  # the usual spelling of a free batch
        return sizes

    def _name(self, label: str) -> str:
        prefix = "fourier" if self.place is None else f"{self.place.name}/fourier"
        name = f"{prefix}/{label}"
        count = 1
        while name in self._taken or name in self.facts.types:
            count += 1
            name = f"{prefix}/{label}_{count}"
        self._taken.add(name)
        return name


def _same_before(old: Shape, new: Shape, axis: int) -> bool:
    """Whether a free size stays itself: what stands before it is the same."""
    return old[:axis] == new[:axis] or _count(old[:axis]) == _count(new[:axis]) != -1


def _count(shape: Shape) -> int:
    return -1 if None in shape else prod(n or 0 for n in shape)


def _listed(shape: Shape) -> str:
    return "x".join("?" if n is None else str(n) for n in shape)


def _module(node: "onnx.NodeProto") -> str:
    """Return the module of the network that a node comes from, where the exporter noted it."""
    notes = {note.key: note.value for note in node.metadata_props}
    scopes = notes.get("pkg.torch.onnx.name_scopes", "")
    names = [part.strip(" '\"[]") for part in scopes.split(",")]
    named = [name for name in names[:-1] if name]
    return f", in module {named[-1]}" if named else ""
