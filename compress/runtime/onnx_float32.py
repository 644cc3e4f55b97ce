"""Which nodes of an ONNX file give float32, read from its bytes without the onnx package.

A file in half precision keeps layer norms and gates in float32 by casts around them. TensorRT 8
types weakly: there a cast binds nobody, so it must be told layer by layer. The types follow from
inputs, weights and casts; every other operator gives the float type that it is given.
"""

from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from compress.runtime.onnx_wire import Span, fields, mapped

__all__ = ["Float32Node", "float32_nodes"]

FLOATS = FLOAT, HALF = (1, 10)  # of TensorProto.DataType
# Fields by number: of a model, a graph, a node, an attribute, a tensor, a value and its type.
GRAPH = 7
NODE, WEIGHT, INPUT = 1, 5, 11
TAKEN, GIVEN, NAME, OPERATOR, ATTRIBUTE = 1, 2, 3, 4, 5
ATTRIBUTE_NAME, NUMBER, TENSOR = 1, 3, 5
DATA_TYPE, WEIGHT_NAME = 2, 8
NO_FLOAT = (
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "IsNaN"),
    *("IsInf", "Shape", "Size", "ArgMax", "ArgMin", "NonZero"),
)


class Float32Node(NamedTuple):
    """A node that gives float32.

    Attributes:
        name: its own, which TensorRT's layer has too.
        outputs: how many; only the first is float32.
        is_pure: whether all that it takes is float32; it is not of a cast, or of what also takes
            places.
    """

    name: str
    outputs: int
    is_pure: bool


def float32_nodes(path: Path) -> List[Float32Node]:
    """Return the nodes of an ONNX file that give float32, constants aside, in its order.

    Raises:
        ValueError: the file is no ONNX file.
        OSError: it cannot be read.
    """
    with mapped(path) as (content, span):
        graphs = list(_spans(content, span, GRAPH))
        return [node for graph in graphs for node in _found(content, graph)]


def _found(content: Any, graph: Span) -> Iterator[Float32Node]:
    types: Dict[bytes, int] = {}
    for tensor in _spans(content, graph, WEIGHT):
        types[_text(content, tensor, WEIGHT_NAME)] = _number(content, tensor, DATA_TYPE) or 0
    for value in _spans(content, graph, INPUT):
        types[_text(content, value, 1)] = _input_type(content, value)
    for node in _spans(content, graph, NODE):
        operator = _text(content, node, OPERATOR)
        outputs = [bytes(content[a:b]) for a, b in _spans(content, node, GIVEN)]
        kind = _type_of(content, node, operator.decode(errors="replace"), types)
        if kind is None or not outputs:
            continue
        types[outputs[0]] = kind  # a second output, as of TopK, is no float
        if kind == FLOAT and operator != b"Constant":
            name = _text(content, node, NAME).decode(errors="replace")
            taken = [bytes(content[a:b]) for a, b in _spans(content, node, TAKEN)]
            is_pure = all(types.get(each) == FLOAT for each in taken if each)
            yield Float32Node(name, len(outputs), is_pure)


def _type_of(content: Any, node: Span, operator: str, types: Dict[bytes, int]) -> Optional[int]:
    """Return what a node gives, None of what is no float."""
    if operator == "Cast":
        return _attribute(content, node, b"to")
    if operator == "Constant":
        return next(
            (
                _number(content, tensor, DATA_TYPE)
                for attribute in _spans(content, node, ATTRIBUTE)
                for tensor in _spans(content, attribute, TENSOR)
            ),
            None,
        )
    if operator in NO_FLOAT:
        return None
    taken = (types.get(bytes(content[a:b])) for a, b in _spans(content, node, TAKEN))
    return next((kind for kind in taken if kind in FLOATS), None)


def _attribute(content: Any, node: Span, name: bytes) -> Optional[int]:
    for attribute in _spans(content, node, ATTRIBUTE):
        if _text(content, attribute, ATTRIBUTE_NAME) == name:
            return _number(content, attribute, NUMBER)
    return None


def _input_type(content: Any, value: Span) -> int:
    """Return the element type of a graph's input: of its type, the tensor type, the number."""
    for kind in _spans(content, value, 2):
        for tensor in _spans(content, kind, 1):
            return _number(content, tensor, 1) or 0
    return 0


def _spans(content: Any, span: Span, wanted: int) -> Iterator[Tuple[int, int]]:
    for number, value in fields(content, span):
        if number == wanted and isinstance(value, tuple):
            yield value


def _number(content: Any, span: Span, wanted: int) -> Optional[int]:
    found = (v for n, v in fields(content, span) if n == wanted and isinstance(v, int))
    return next(found, None)


def _text(content: Any, span: Span, wanted: int) -> bytes:
    return next((bytes(content[a:b]) for a, b in _spans(content, span, wanted)), b"")
