"""Give the outputs of an ONNX graph the names that they should have.

Torch's exporter overwrites the names of the last values, even where an inner value or a weight has
the new name already (a network that returns {"relu": …}), and a value that is given twice, or an
input, a weight that is given on, gets one name for both. So names are set here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress.optional import require

__all__ = ["moved_aside", "name_outputs_", "rename_values_"]


def name_outputs_(proto: Any, names: Sequence[str]) -> None:
    """Rename the outputs of an `onnx.ModelProto`, in order.

    A value that is no output of a node, or is given twice, is given through an Identity.

    Args:
        proto: changed in place.
        names: one for each output, all different, none of them that of an input.
    """
    onnx = require("onnx", "writing ONNX files")
    graph = proto.graph
    for node in list(graph.node):
        if list(node.input) == list(node.output):  # torch's copy of an input that is given on
            graph.node.remove(node)
    made = {value for node in graph.node for value in node.output}
    renamed = moved_aside(graph, names)
    copied: list[tuple[str, str]] = []
    done: set[str] = set()
    for output, name in zip(graph.output, names, strict=True):
        if output.name in made and output.name not in done:
            renamed[output.name] = name
        else:
            copied.append((output.name, name))
        done.add(output.name)
        output.name = name
    rename_values_(graph, renamed)
    for value, name in copied:
        source = renamed.get(value, value)
        graph.node.append(onnx.helper.make_node("Identity", [source], [name], f"give_{name}"))


def moved_aside(graph: Any, names: Sequence[str]) -> dict[str, str]:
    """Return other names for the values of a graph that have one of these, by those they have."""
    used = set(_values(graph))
    aside = {}
    for name in used.intersection(names):
        number = 0
        while (other := f"{name}_inner_{number}") in used or other in names:
            number += 1
        aside[name] = other
        used.add(other)
    return aside


def _values(graph: Any) -> Iterator[str]:
    yield from (each.name for each in graph.initializer)
    for node in graph.node:
        yield from node.output
        for inner in _subgraphs(node):
            yield from _values(inner)


def rename_values_(graph: Any, renamed: Mapping[str, str]) -> None:
    """Rename values and initializers, and every reader of them; inputs and outputs stay."""
    for each in (*graph.initializer, *graph.value_info):
        each.name = renamed.get(each.name, each.name)
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
        for inner in _subgraphs(node):
            rename_values_(inner, renamed)
            for each in (*inner.input, *inner.output):
                each.name = renamed.get(each.name, each.name)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
