"""Rewrites that leave the meaning of an ONNX graph alone: names, order, what nobody reads."""

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING

from compress.errors import UnsupportedModelError
from compress.export.graph_facts import GraphFacts, inner_reads

if TYPE_CHECKING:
    import onnx

__all__ = ["constants_to_initializers_", "drop_notes_", "name_nodes_", "sort_", "tidy_"]


def tidy_(proto: "onnx.ModelProto") -> None:
    """Share equal constants, drop what nobody reads, put every node behind what it needs.

    Raises:
        UnsupportedModelError: nodes need each other in a circle, or a tensor comes from nowhere.
    """
    _drop_unread_nodes_(proto.graph)
    _share_constants_(proto)
    _drop_unread_initializers_(proto.graph)
    _drop_needless_attributes_(proto)
    sort_(proto.graph)
    _drop_unread_domains_(proto)


def drop_notes_(proto: "onnx.ModelProto") -> None:
    """Remove comments of whoever wrote the graph, and inferred shapes, which rewriting outdates."""
    graph = proto.graph
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")


def name_nodes_(graph: "onnx.GraphProto") -> None:
    """Name nodes without a name, or with one that another has, after what they compute."""
    taken: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in taken:
            node.name = f"node_{node.op_type}_{next(filter(None, node.output), len(taken))}"
        taken.add(node.name)


def constants_to_initializers_(proto: "onnx.ModelProto") -> None:
    """Turn Constant nodes into initializers: parsers ask for those where a value must be known."""
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    has_any = any(node.op_type == "Constant" for node in graph.node)
    constants = GraphFacts(proto).constants if has_any else {}
    for node in list(graph.node):
        if node.op_type == "Constant" and node.output[0] in constants:
            graph.initializer.append(constants[node.output[0]])
            graph.node.remove(node)
    for value in [value for value in graph.input if value.name in stored]:
        graph.input.remove(value)  # an input with a default would not be a constant


def _drop_unread_nodes_(graph: "onnx.GraphProto") -> None:
    read = {output.name for output in graph.output}
    kept = []
    for node in _sorted(graph)[::-1]:
        if read.intersection(node.output) - {""}:
            kept.append(node)
            read.update(node.input, inner_reads(node))
    _replace_nodes_(graph, kept[::-1])


def _drop_unread_initializers_(graph: "onnx.GraphProto") -> None:
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input, inner_reads(node))
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)


def _share_constants_(proto: "onnx.ModelProto") -> None:
    """Keep the first of equal initializers: blocks of one grid share their DFT matrices so."""
    graph, facts = proto.graph, GraphFacts(proto)
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        value = facts.array(tensor.name)
        if value is None:
            continue
        content = (tensor.data_type, tuple(tensor.dims), value.tobytes())
        name = first.setdefault(content, tensor.name)
        if name != tensor.name:
            renamed[tensor.name] = name
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _drop_needless_attributes_(proto: "onnx.ModelProto") -> None:
    """Take allowzero from a Reshape without zeros, and outputs that nobody reads from the end."""
    graph, facts = proto.graph, GraphFacts(proto)
    read = {name for node in graph.node for name in (*node.input, *inner_reads(node))}
    read.update(output.name for output in graph.output)
    for node in graph.node:
        if node.op_type == "Reshape":
            shape = facts.array(node.input[1])
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                if shape is not None and shape.all():
                    node.attribute.remove(attribute)
        if node.op_type in ("MaxPool", "LayerNormalization", "Dropout", "BatchNormalization"):
            while len(node.output) > 1 and node.output[-1] not in read:
                node.output.pop()


def _drop_unread_domains_(proto: "onnx.ModelProto") -> None:
    used = {node.domain for node in proto.graph.node} | {"", "ai.onnx"}
    for opset in [o for o in proto.opset_import if o.domain not in used]:
        proto.opset_import.remove(opset)


def sort_(graph: "onnx.GraphProto") -> None:
    """Put every node behind what it needs, else in the order they had."""
    _replace_nodes_(graph, _sorted(graph))


def _sorted(graph: "onnx.GraphProto") -> list["onnx.NodeProto"]:
    """Return the nodes so that each stands behind what it reads, else in the order they had."""
    nodes = list(graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [
        {makers[n] for n in (*node.input, *inner_reads(node)) if makers.get(n, i) != i}
        for i, node in enumerate(nodes)
    ]
    readers: dict[int, list[int]] = defaultdict(list)
    for i, makers_of_i in enumerate(needs):
        for maker in makers_of_i:
            readers[maker].append(i)
    ready = [i for i, makers_of_i in enumerate(needs) if not makers_of_i]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            needs[reader].discard(i)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(node for node, left in zip(nodes, needs, strict=True) if left)
        raise UnsupportedModelError(
            f"node {stuck.name} ({stuck.op_type}) of the graph needs its own result; expected a "
            "graph without circles, so export the network again"
        )
    return [nodes[i] for i in order]


def _replace_nodes_(graph: "onnx.GraphProto", nodes: list["onnx.NodeProto"]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
