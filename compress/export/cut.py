"""One ONNX graph cut into segments that run one after the other, each up to an exit.

    segment 0 = all nodes that its outputs need
    segment i = all nodes that its outputs need, less those of earlier segments
    what segment i gives on = values of it that a later segment reads

No architecture is known here. A weight goes to every segment that reads it, and so does what is
computed from constants alone. What crosses is named hidden_0, hidden_1, … in the order in which it
is made; a value has one name in the segment that makes it and in all that read it, and is kept
until the last of them has run, not copied through those between. The image may be kept so, too.

Rows of what crosses are images, so that those of images that left can be dropped: what has no row
an image, such as a shape, is computed again behind the cut. So is another view of what crosses
anyway (`VIEWS`): it would cross as a second tensor.

With a = h(image), b = k(image), logits_0 = f(a) and logits = g(a, b), segment 0 holds h and f and
gives a as hidden_0; segment 1 holds k and g, and takes image and hidden_0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.errors import UnsupportedModelError
from compress.export.cut_values import Seen, observed
from compress.export.graph_facts import inner_reads
from compress.export.graph_outputs import moved_aside, rename_values_
from compress.optional import require
from compress.runtime.manifest import ITEM_BYTES, TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphSegment", "cut_graph"]

# Cheaper to compute again than to carry, where what they are a view of crosses anyway.
VIEWS = ("Shape", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
CROSSING = "hidden"
FLOATS = ("float", "bfloat")

Values = dict[str, Seen]


@dataclass(frozen=True, kw_only=True)
class GraphSegment:
    """One part of a graph.

    Attributes:
        proto: the graph, which takes `takes` and gives `gives`, then its results.
        takes: the image, where it reads it, and what earlier segments give.
        gives: what later segments read; shapes without the batch.
        results: its own outputs, behind what it gives; shapes without the batch.
    """

    proto: "onnx.ModelProto"
    takes: tuple[TensorSpec, ...]
    gives: tuple[TensorSpec, ...]
    results: tuple[TensorSpec, ...]


def cut_graph(
    proto: "onnx.ModelProto",
    results: Sequence[Mapping[str, str]],
    images: NDArray[np.float32],
) -> list[GraphSegment]:
    """Cut a graph; running the segments in order gives what the graph gives.

    Args:
        proto: takes one tensor, with the images in its first dimension; left as it is.
        results: for each segment the outputs of the graph that it gives, and their names there,
            such as {"logits_0": "logits", "gate_0": "gate"}.
        images: at least one, of what the graph takes: it is run on them to see what its values are.

    Raises:
        UnsupportedModelError: a segment would compute nothing, or what crosses has no row an image.
        ToolchainError: onnx or onnxruntime is missing.
    """
    plan = _Plan(proto, [list(names) for names in results])
    values = _settle(plan, proto, images)
    names = _names_of_crossing(plan)
    return [_written(plan, proto, i, names, given, values) for i, given in enumerate(results)]


@dataclass
class _Part:
    """What is known of a segment while the cut is planned.

    Attributes:
        results: outputs of the graph that it gives.
        nodes: places of its nodes in the graph.
        again: places of nodes of earlier segments that it computes again.
    """

    results: list[str]
    nodes: set[int] = field(default_factory=set)
    again: set[int] = field(default_factory=set)

    @property
    def here(self) -> set[int]:
        """Places of all nodes that it computes."""
        return self.nodes | self.again


class _Plan:
    """Which node belongs to which segment.

    Attributes:
        counting: places of nodes that give the number of images, which whatever crosses tells too.

    Raises:
        UnsupportedModelError: a segment would hold no node.
    """

    def __init__(self, proto: "onnx.ModelProto", results: Sequence[list[str]]) -> None:
        (self.image,) = (each.name for each in proto.graph.input)
        self.nodes = list(proto.graph.node)  # each behind what it needs: lowering sorts them
        self.maker = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self.reads = [_reads(node) for node in self.nodes]
        self.depends = self._depending_on_the_image()
        self.parts = [_Part(results=names) for names in results]
        self.counting: set[int] = set()
        taken: set[int] = set()
        for number, part in enumerate(self.parts):
            part.nodes = self._needed(part.results) - taken
            taken |= part.nodes
            if not part.nodes:
                raise UnsupportedModelError(
                    f"segment {number} would compute nothing that earlier ones do not; expected "
                    f"every exit to stand behind other layers, so leave out exit {number - 1}"
                )

    def wanted(self, number: int) -> set[str]:
        """Return what a segment must be given: values that depend on the image, made elsewhere."""
        here = self.parts[number].here
        reads = (self.reads[place] for place in here - self.counting)
        found = set(self.parts[number].results).union(*reads)
        return {v for v in found if v in self.depends and self.maker.get(v) not in here}

    def is_view(self, number: int, value: str) -> bool:
        """Whether a value is a view, or a view of views, of others that the segment has anyway."""
        return self._is_view_of(value, self.wanted(number) - {value}, self.parts[number].again)

    def _is_view_of(self, value: str, given: set[str], again: set[int]) -> bool:
        place = self.maker.get(value)
        if place is None or self.nodes[place].op_type not in VIEWS:
            return False
        return all(
            need in given or self.maker.get(need) in again or self._is_view_of(need, given, again)
            for need in self.reads[place] & self.depends
        )

    def crossing(self) -> set[str]:
        """Return all that some segment must be given, apart from the image."""
        found = {v for i in range(len(self.parts)) for v in self.wanted(i)}
        return found - {self.image}

    def sizes(self) -> dict[int, str]:
        """Return the nodes that give a first dimension, and of what they give it."""
        found = {}
        for place, node in enumerate(self.nodes):
            axes = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "Shape" and axes.get("start", 0) == 0 and axes.get("end") == 1:
                found[place] = node.input[0]
        return found

    def _depending_on_the_image(self) -> set[str]:
        found = {self.image}
        for node, reads in zip(self.nodes, self.reads, strict=True):
            if not found.isdisjoint(reads):
                found.update(filter(None, node.output))
        return found

    def _needed(self, results: Iterable[str]) -> set[int]:
        """Return the nodes behind some outputs, without those that depend on constants alone."""
        found: set[int] = set()
        todo = list(results)
        while todo:
            place = self.maker.get(value := todo.pop())
            if place is not None and place not in found and value in self.depends:
                found.add(place)
                todo += self.reads[place]
        return found


def _reads(node: "onnx.NodeProto") -> set[str]:
    return {name for name in (*node.input, *inner_reads(node)) if name}


def _settle(plan: _Plan, proto: "onnx.ModelProto", images: NDArray[np.float32]) -> Values:
    """Let segments compute again what need not or cannot cross; return what the rest is.

    Raises:
        UnsupportedModelError: something must cross that has no row an image.
    """
    values: Values = {plan.image: Seen(dtype=str(images.dtype), shape=images.shape[1:])}
    sizes = {place: value for place, value in plan.sizes().items() if value in plan.depends}
    results = {name for part in plan.parts for name in part.results}
    first = results.union(sizes.values(), plan.crossing()) - {plan.image}
    values.update(observed(proto, first, images))
    plan.counting = {place for place, value in sizes.items() if values[value].shape is not None}

    def has_no_rows(_: int, value: str) -> bool:
        if plan.maker[value] in plan.counting:
            return True
        return value in values and values[value].shape is None

    while True:
        _compute_again_(plan, has_no_rows)
        _compute_again_(plan, plan.is_view)
        unknown = plan.crossing() - values.keys()
        if not unknown:
            break
        values.update(observed(proto, unknown, images))
    for part in plan.parts:
        for place in part.again:
            _check_cheap(plan, place, values)
    return values


def _compute_again_(plan: _Plan, chosen: Callable[[int, str], bool]) -> None:
    """Let each segment compute again what is chosen of the values that it must be given."""
    for number, part in enumerate(plan.parts):
        while again := [v for v in plan.wanted(number) - {plan.image} if chosen(number, v)]:
            part.again.update(plan.maker[value] for value in again)


def _check_cheap(plan: _Plan, place: int, values: Values) -> None:
    """Sizes and views may be computed twice, but nothing that costs."""
    node = plan.nodes[place]
    seen = next((values[name] for name in node.output if name in values), None)
    if node.op_type not in VIEWS and seen is not None and seen.dtype.startswith(FLOATS):
        raise UnsupportedModelError(
            f"{node.output[0]} ({node.op_type}) would go on to a later segment, but its first "
            "dimension is not that of the images; expected tensors with one row an image behind "
            "an exit, so put the exit behind another layer"
        )


def _names_of_crossing(plan: _Plan) -> dict[str, str]:
    """Number what crosses in the order in which the segments make it."""

    def made_at(value: str) -> tuple[int, int, str]:
        place = plan.maker[value]
        segment = next(i for i, part in enumerate(plan.parts) if place in part.nodes)
        return segment, place, value

    made = sorted(plan.crossing(), key=made_at)
    return {value: f"{CROSSING}_{number}" for number, value in enumerate(made)}


def _written(
    plan: _Plan,
    proto: "onnx.ModelProto",
    number: int,
    crossing: Mapping[str, str],
    results: Mapping[str, str],
    values: Values,
) -> GraphSegment:
    """Return a segment as a graph of its own."""
    part = plan.parts[number]
    wanted = plan.wanted(number)
    takes = [v for v in (plan.image, *crossing) if v in wanted]
    gives = [v for v in crossing if plan.maker[v] in part.nodes]
    if not takes:  # something must tell the number of images
        takes = [plan.image]
    segment = _bare(proto, f"segment_{number}")
    nodes = _nodes_of(plan, part, takes)
    read = {name for node in nodes for name in _reads(node)}
    segment.graph.node.extend(nodes)
    segment.graph.initializer.extend(t for t in proto.graph.initializer if t.name in read)
    _name_ends_(segment, crossing, results, takes)
    spec = {value: _spec(crossing.get(value, value), values[value]) for value in (*takes, *gives)}
    own = [_spec(name, values[value]) for value, name in results.items()]
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    segment.graph.input.extend(_info(spec[value], batch) for value in takes)
    segment.graph.output.extend(
        _info(each, batch) for each in (*(spec[value] for value in gives), *own)
    )
    return GraphSegment(
        proto=segment,
        takes=tuple(spec[value] for value in takes),
        gives=tuple(spec[value] for value in gives),
        results=tuple(own),
    )


def _bare(proto: "onnx.ModelProto", name: str) -> "onnx.ModelProto":
    """Return a model without a graph, of the same versions."""
    made = type(proto)()
    made.ir_version = proto.ir_version
    made.producer_name, made.producer_version = proto.producer_name, proto.producer_version
    made.opset_import.extend(proto.opset_import)
    made.graph.name = name
    return made


def _nodes_of(plan: _Plan, part: _Part, takes: Sequence[str]) -> "list[onnx.NodeProto]":
    """Return copies of the nodes of a segment, with those that they need of constants alone."""
    places = set(part.here)
    todo = [name for place in part.here for name in plan.reads[place] - plan.depends]
    while todo:
        place = plan.maker.get(todo.pop())  # None of an initializer
        if place is not None and place not in places:
            places.add(place)
            todo += plan.reads[place]
    found = []
    for place in sorted(places):
        copy = type(plan.nodes[place])()
        copy.CopyFrom(plan.nodes[place])
        if place in plan.counting and not _has(plan, part, takes, copy.input[0]):
            copy.input[0] = takes[0]  # any will do
        found.append(copy)
    return found


def _has(plan: _Plan, part: _Part, takes: Sequence[str], value: str) -> bool:
    return value in takes or plan.maker.get(value) in part.here


def _name_ends_(
    segment: "onnx.ModelProto",
    crossing: Mapping[str, str],
    results: Mapping[str, str],
    takes: Sequence[str],
) -> None:
    """Give what crosses and what is a result its name; a value that is both is given twice."""
    onnx = require("onnx", "cutting ONNX graphs")
    graph = segment.graph
    names = {**results, **crossing}
    renamed = {**moved_aside(graph, [*crossing.values(), *results.values()]), **names}
    rename_values_(graph, renamed)
    for value, name in results.items():
        if value in crossing:
            node = onnx.helper.make_node("Identity", [crossing[value]], [name], f"give_{name}")
            graph.node.append(node)


def _spec(name: str, seen: Seen) -> TensorSpec:
    if seen.shape is None:
        raise UnsupportedModelError(
            f"the first dimension of {name} is not that of the images; expected one row an image"
        )
    if seen.dtype not in ITEM_BYTES:
        raise UnsupportedModelError(
            f"{name} would go on to a later segment as {seen.dtype}; expected one of "
            f"{', '.join(ITEM_BYTES)}, so cast it, or put the exit behind another layer"
        )
    return TensorSpec(name, seen.dtype, seen.shape)


def _info(spec: TensorSpec, batch: "onnx.TensorShapeProto.Dimension") -> "onnx.ValueInfoProto":
    onnx = require("onnx", "cutting ONNX graphs")
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    first = batch.dim_value if batch.HasField("dim_value") else batch.dim_param
    return onnx.helper.make_tensor_value_info(spec.name, kind, [first, *spec.shape])
