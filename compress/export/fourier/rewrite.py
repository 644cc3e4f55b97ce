"""The pass: walk a graph once, and write complex tensors as late and as little as it goes."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from compress.export.fourier import rules_moves, rules_transforms, rules_values
from compress.export.fourier.constants import Known
from compress.export.fourier.context import Context
from compress.export.fourier.products import Products
from compress.export.fourier.writer import Writer
from compress.export.graph_facts import GraphFacts, inner_reads, opset_of
from compress.export.graph_tidy import name_nodes_, sort_

if TYPE_CHECKING:
    import onnx

__all__ = ["count_transforms", "rewrite_transforms_"]

Rule = Callable[[Context, "onnx.NodeProto"], bool]
TRANSFORMS = ("DFT", "STFT")
STANDARD = ("", "ai.onnx")

RULES: Mapping[str, Rule] = {
    "DFT": rules_transforms.dft,
    "STFT": rules_transforms.stft,
    "Col2Im": rules_values.overlap_added,
    "Concat": rules_moves.concat,
    "Gather": rules_moves.gather,
    "Identity": rules_moves.identity,
    "Pad": rules_moves.pad,
    "ReduceL2": rules_values.norm,
    "ReduceSum": rules_values.norm,
    "ReduceSumSquare": rules_values.norm,
    "Reshape": rules_moves.reshape,
    "Slice": rules_moves.slice_,
    "Split": rules_moves.split,
    "Squeeze": rules_moves.squeeze,
    "Transpose": rules_moves.transpose,
    "Unsqueeze": rules_moves.unsqueeze,
    **dict.fromkeys(rules_values.ELEMENTWISE, rules_values.elementwise),
}
NEED_NO_VIEW = ("DFT", "STFT", "Col2Im", "Gather", "Pad", "Unsqueeze")


def count_transforms(nodes: Iterable["onnx.NodeProto"]) -> int:
    """Return how many nodes, and nodes of the graphs inside them, are transforms."""
    total = 0
    for node in nodes:
        total += node.op_type in TRANSFORMS and node.domain in STANDARD
        for attribute in node.attribute:
            inner = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            total += sum(count_transforms(part.node) for part in inner)
    return total


def rewrite_transforms_(proto: "onnx.ModelProto") -> int:
    """Write every DFT and STFT of a graph as real products; return how many there were.

    Complex pairs next to them disappear with them. Nodes keep their order; a graph without
    transforms stays as it is.

    Raises:
        UnsupportedModelError: a length or an axis is not constant; the message names the node.
    """
    graph = proto.graph
    count = count_transforms(graph.node)
    if count == 0:
        return 0
    name_nodes_(graph)
    sort_(graph)
    facts = GraphFacts(proto)
    writer = Writer(facts, opset_of(proto))
    context = Context(
        writer=writer,
        known=Known(proto, facts),
        products=Products(writer),
        feeds_transforms=_feeding(graph),
    )
    for node in graph.node:
        writer.place = node
        if not _absorbed(context, node):
            _keep(context, node)
    writer.place = None
    _name_outputs_(context, graph)
    del graph.node[:]
    graph.node.extend(writer.nodes)
    graph.initializer.extend(writer.constants)
    return count


def _absorbed(context: Context, node: "onnx.NodeProto") -> bool:
    rule = RULES.get(node.op_type)
    if rule is None or node.domain not in STANDARD:
        return False
    if node.op_type in NEED_NO_VIEW:
        return rule(context, node)
    return any(name in context.views for name in node.input) and rule(context, node)


def _keep(context: Context, node: "onnx.NodeProto") -> None:
    """Write a node as it is, behind the waves that it reads."""
    if node.op_type not in TRANSFORMS and count_transforms([node]):
        raise context.writer.fail(
            "a transform stands in a graph inside it",
            remedy="move the transform out of the branch or loop, and export again",
        )
    for name in set(inner_reads(node)):
        context.tensor(name, exact=True)
    kept = type(node)()
    kept.CopyFrom(node)
    kept.input[:] = [context.tensor(name) if name else "" for name in node.input]
    context.writer.nodes.append(kept)


def _name_outputs_(context: Context, graph: "onnx.GraphProto") -> None:
    """Let the last nodes give what the graph gives, under its names."""
    written = {output.name: context.tensor(output.name) for output in graph.output}
    made = {name for node in context.writer.nodes for name in node.output} - set(written)
    renamed: dict[str, str] = {}
    for output in graph.output:
        found = written[output.name]
        if found == output.name:
            continue
        if found in made and found not in renamed:
            renamed[found] = output.name
        else:
            context.tensor(output.name, exact=True)
    for node in context.writer.nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _feeding(graph: "onnx.GraphProto") -> frozenset[str]:
    """Return the tensors that a transform hangs on; the nodes are sorted."""
    names: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in TRANSFORMS or names.intersection(node.output):
            names.update(name for name in node.input if name)
    return frozenset(names)
