"""What a target's parser would refuse in a graph, or take and compute something else.

Refusals cost an hour on a device; silent ones cost trust. The worst is ReduceMean with its axes as
an input on TensorRT 8, which averages over everything. A finding of level "error" stops an export;
"info" only tells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from compress.errors import UnsupportedModelError
from compress.export.graph_facts import GraphFacts, opset_of, type_name
from compress.export.targets import Operator, Target

if TYPE_CHECKING:
    import onnx

__all__ = ["Finding", "check_lint", "lint"]

LARGEST_BYTES = (1 << 31) - 1  # of one tensor, a free batch counted as one
BYTES = {"float64": 8, "int64": 8, "uint64": 8, "complex64": 8, "complex128": 16}
BYTES |= dict.fromkeys(("float32", "int32", "uint32"), 4)
BYTES |= dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2)
MOVES = ("Slice", "Concat", "Transpose")
INT32 = np.iinfo(np.int32)
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a graph that matters on a target.

    Attributes:
        level: "error" or "info".
        rule: a short name of what was checked, such as "ignored-input".
        node: name of the node; empty where it is about the graph.
        operator: ONNX name of what the node computes; empty likewise.
        message: what is wrong, what the target accepts, what to do.
    """

    level: str
    rule: str
    node: str
    operator: str
    message: str


def lint(proto: "onnx.ModelProto", target: Target) -> list[Finding]:
    """Return what the target's parser would refuse or misread, errors first."""
    facts = GraphFacts(proto)
    found = [
        *_versions(proto, target),
        *_interface(proto, target),
        *_tensors(proto, facts, target),
        *(finding for node in proto.graph.node for finding in _node(node, facts, target)),
        *_moves_in_filters(proto, facts),
    ]
    return sorted(found, key=lambda finding: finding.level != "error")


def check_lint(proto: "onnx.ModelProto", target: Target) -> list[Finding]:
    """Return the findings that are no errors.

    Raises:
        UnsupportedModelError: there are errors; the message tells the first, and how many more.
    """
    found = lint(proto, target)
    errors = [finding for finding in found if finding.level == "error"]
    if errors:
        more = f" ({len(errors) - 1} more of the kind)" if len(errors) > 1 else ""
        raise UnsupportedModelError(
            f"the graph does not fit {target.display_name}: {errors[0].message}{more}"
        )
    return found


def _versions(proto: "onnx.ModelProto", target: Target) -> Iterator[Finding]:
    opset = opset_of(proto)
    if opset > target.newest_opset:
        yield _of_graph(
            "opset",
            f"it is in opset {opset}, the target knows up to {target.newest_opset}; lower it",
        )
    if proto.ir_version > target.ir_version:
        yield _of_graph(
            "ir-version",
            f"its file format is IR version {proto.ir_version}, the target reads up to "
            f"{target.ir_version}; lower it",
        )


def _interface(proto: "onnx.ModelProto", target: Target) -> Iterator[Finding]:
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type.tensor_type
        dtype = type_name(kind.elem_type)
        if dtype in target.types and dtype not in target.io_types:
            yield _of_graph(
                "io-type",
                f"{value.name} is {dtype}, the target takes and gives only "
                f"{_listed(target.io_types)}; cast it inside the graph",
            )
        free = [i for i, dim in enumerate(kind.shape.dim) if not dim.HasField("dim_value")]
        if not kind.HasField("shape") or any(free):  # only place 0 may be free
            where = f"dimensions {free}" if kind.HasField("shape") else "its rank"
            yield _of_graph(
                "dynamic-shape",
                f"{value.name} leaves {where} free, expected at most the batch (0); export it for "
                "one image size",
            )


def _tensors(proto: "onnx.ModelProto", facts: GraphFacts, target: Target) -> Iterator[Finding]:
    for name, dtype in facts.types.items():
        if dtype not in target.types:
            yield _of_graph(
                "type",
                f"tensor {name} is {dtype}, the target computes only {_listed(target.types)}"
                f"{_advice_on_type(dtype)}",
            )
        size = prod(d or 1 for d in facts.shapes.get(name, ())) * BYTES.get(dtype, 1)
        if size > LARGEST_BYTES:
            yield _of_graph(
                "size",
                f"tensor {name} holds {size / 2**30:.1f} GiB, expected less than 2; "
                "take a smaller image or network",
            )
    for tensor in facts.constants.values():
        if tensor.data_location == tensor.EXTERNAL:
            yield _of_graph(
                "external-data",
                f"the values of {tensor.name} lie in another file, expected one file that holds "
                "all; save the graph without external data",
            )


def _node(node: "onnx.NodeProto", facts: GraphFacts, target: Target) -> Iterator[Finding]:
    say = _Speaker(node, target)
    if not target.subgraphs and any(a.HasField("g") or a.graphs for a in node.attribute):
        yield say(
            "subgraph", "it holds graphs of its own", "let the host decide, outside the graph"
        )
        return
    accepted = target.operator(node.op_type) if node.domain in STANDARD else None
    if accepted is None:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        yield say("operator", f"{name} is not among the operators it takes", _remedy(node.op_type))
        return
    for check in (_inputs, _attributes, _types, _outputs):
        yield from check(node, accepted, facts, say)
    if target.narrow_integers:
        yield from _integers(node, facts, say)


class _Speaker:
    """Makes the findings about one node."""

    def __init__(self, node: "onnx.NodeProto", target: Target) -> None:
        self.node, self.target = node, target

    def __call__(self, rule: str, what: str, remedy: str) -> Finding:
        name = self.node.name or next(iter(self.node.output), "")
        runtime = self.target.display_name
        return Finding(
            level="error",
            rule=rule,
            node=name,
            operator=self.node.op_type,
            message=f"node {name} ({self.node.op_type}): {what} [{runtime}]; {remedy}",
        )


def _inputs(
    node: "onnx.NodeProto", accepted: Operator, facts: GraphFacts, say: _Speaker
) -> Iterator[Finding]:
    given = {i: name for i, name in enumerate(node.input) if name}
    for i in accepted.ignored:
        if i in given:
            yield say(
                "ignored-input",
                f"its input {i} ({given[i]}) is ignored without a word, so it would reduce over "
                "all axes; the parser reads them only from the attribute axes",
                "lower the graph to opset 17",
            )
    for i in accepted.constants:
        if i in given and given[i] not in facts.constants:
            yield say(
                "constant-input",
                f"its input {i} ({given[i]}) is computed, only an initializer is taken",
                "make it a constant of the network",
            )
    for i in accepted.computed:
        if i in given and given[i] in facts.constants:
            yield say(
                "computed-input",
                f"its input {i} ({given[i]}) is an initializer, only a computed tensor is taken",
                "quantise with weights left float behind a QuantizeLinear",
            )
    for i in accepted.zeros:
        value = facts.array(given[i]) if i in given else None
        if value is not None and value.any():
            yield say(
                "zero-point",
                f"its input {i} ({given[i]}) is not zero, only symmetric scales are taken",
                "quantise symmetrically",
            )


def _attributes(
    node: "onnx.NodeProto", accepted: Operator, facts: GraphFacts, say: _Speaker
) -> Iterator[Finding]:
    for attribute in node.attribute:
        if attribute.name in accepted.ignored_attributes:
            yield say(
                "ignored-attribute",
                f"its attribute {attribute.name} is ignored without a word",
                "lower the graph, which says it otherwise",
            )
        wanted = accepted.attributes.get(attribute.name)
        values = attribute.ints if attribute.ints else [attribute.i]
        if wanted is not None and any(value != wanted for value in values):
            yield say(
                "attribute",
                f"its attribute {attribute.name} is {[*values]}, only {wanted} is taken",
                "change the layer in the network",
            )


def _types(
    node: "onnx.NodeProto", accepted: Operator, facts: GraphFacts, say: _Speaker
) -> Iterator[Finding]:
    place = 1 if node.op_type == "Where" else 0
    name = node.input[place] if len(node.input) > place else ""
    dtype = facts.types.get(name)
    if accepted.types is not None and dtype is not None and dtype not in accepted.types:
        yield say(
            "operand-type",
            f"its input {name} is {dtype}, only {_listed(accepted.types)} is taken",
            "cast it before, or change the layer in the network",
        )


def _outputs(
    node: "onnx.NodeProto", accepted: Operator, facts: GraphFacts, say: _Speaker
) -> Iterator[Finding]:
    used = [name for name in node.output if name]
    if len(used) > accepted.outputs:
        yield say(
            "outputs",
            f"it gives {', '.join(used)}, only {accepted.outputs} of them can be had",
            "change the layer in the network",
        )


def _integers(node: "onnx.NodeProto", facts: GraphFacts, say: _Speaker) -> Iterator[Finding]:
    """Find constants that int32 cannot hold; bounds of a Slice mean the same when clamped."""
    for name in node.input if node.op_type != "Slice" else ():
        value = facts.array(name) if facts.types.get(name) == "int64" else None
        if value is not None and value.size and _outside_int32(value):
            yield say(
                "integer-range",
                f"its input {name} holds {value.reshape(-1)[np.abs(value).argmax()]}, integers are "
                "clamped to 32 bits",
                "change the layer in the network",
            )


def _outside_int32(value: np.ndarray) -> bool:
    return bool(value.min() < INT32.min or value.max() > INT32.max)


def _moves_in_filters(proto: "onnx.ModelProto", facts: GraphFacts) -> Iterator[Finding]:
    """Count what moves data between two products with a constant on the left, as filters have."""
    nodes = list(proto.graph.node)
    products = {
        name
        for node in nodes
        if node.op_type == "MatMul" and node.input[0] in facts.constants
        for name in node.output
    }
    behind, before = set(products), set(products)  # tensors that hang on a product, that feed one
    for node in nodes:
        if behind.intersection(node.input):
            behind.update(node.output)
    for node in reversed(nodes):
        if before.intersection(node.output):
            before.update(node.input)
    between = behind & before
    moves = [n.op_type for n in nodes if n.op_type in MOVES and between.intersection(n.output)]
    if moves:
        counts = ", ".join(f"{moves.count(kind)} {kind}" for kind in MOVES if kind in moves)
        yield Finding(
            level="info",
            rule="moves-in-filter",
            node="",
            operator="",
            message=f"{counts} between the products of the filters; TensorRT makes many layers of "
            "each, where lowering (python -m compress.lower) mostly needs none",
        )


def _of_graph(rule: str, message: str) -> Finding:
    return Finding(level="error", rule=rule, node="", operator="", message=message)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _advice_on_type(dtype: str) -> str:
    if dtype.startswith("complex"):
        return "; export the network with compress, which writes complex tensors as real products"
    if dtype == "float64":
        return " and would take it for float32 without a word; keep the network in float32"
    return "; change the layer in the network"


def _remedy(operator: str) -> str:
    if operator in ("DFT", "STFT"):
        return "lower the graph (python -m compress.lower), which writes it as real products"
    if operator in ("LayerNormalization", "Gelu"):
        return "lower the graph, which says it in other operators"
    return "change the layer in the network, or choose another target"
