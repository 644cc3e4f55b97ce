"""A one-node ONNX model, Gather along the batch, written without the onnx package.

It lets ONNX Runtime compact a batch where it lies, on a GPU too, on machines that have no onnx.
The bytes are protobuf's wire format (https://protobuf.dev/programming-guides/encoding) of the
messages of onnx.proto.
"""

from typing import Sequence, Union

__all__ = ["gather_model"]

ELEMENT_TYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
IR_VERSION, OPSET = 8, 13


def gather_model(dtype: str, shape: Sequence[int]) -> bytes:
    """Return a model from `hidden` (B, *shape) and int64 `rows` (R,) to `kept` (R, *shape)."""
    node = _field(1, b"hidden") + _field(1, b"rows") + _field(2, b"kept") + _field(4, b"Gather")
    graph = (
        _field(1, node)
        + _field(2, b"keep rows")
        + _field(11, _value(b"hidden", ELEMENT_TYPES[dtype], ["B", *shape]))
        + _field(11, _value(b"rows", ELEMENT_TYPES["int64"], ["R"]))
        + _field(12, _value(b"kept", ELEMENT_TYPES[dtype], ["R", *shape]))
    )
    return _field(1, IR_VERSION) + _field(8, _field(2, OPSET)) + _field(7, graph)


def _value(name: bytes, element_type: int, shape: Sequence[Union[str, int]]) -> bytes:
    """A ValueInfoProto: sizes that are text are free."""
    sizes = b"".join(
        _field(1, _field(2, size.encode()) if isinstance(size, str) else _field(1, size))
        for size in shape
    )
    tensor = _field(1, element_type) + _field(2, sizes)
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, content: Union[int, bytes]) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
