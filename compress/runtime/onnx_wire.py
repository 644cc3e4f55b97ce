"""Does an ONNX file keep weights in other files? Read from its bytes, without the onnx package.

The sha256 of a segment covers its own file alone, so weights that lie elsewhere are weights that
nobody compared, and their names are paths that ONNX Runtime would open. The bytes are protobuf's
wire format (https://protobuf.dev/programming-guides/encoding) of the messages of onnx.proto; only
fields that lead to tensors are entered, weights themselves are skipped. What protobuf would read
in another way than this does, such as groups, counts as damaged.
"""

import mmap
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple, Union

__all__ = ["Span", "fields", "has_external_data", "mapped"]

# Fields by number, of each message, and the message that each holds.
CHILDREN: Dict[str, Dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor
MAX_DEPTH = 100  # protobuf's own limit
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}

Span = Tuple[int, int]  # first byte, and the one behind the last


def has_external_data(path: Path) -> bool:
    """Return whether a tensor of an ONNX file has its data elsewhere.

    Raises:
        ValueError: the file is no ONNX file.
        OSError: it cannot be read.
    """
    with mapped(path) as (content, span):
        return _finds_external(content, "model", span, MAX_DEPTH)


@contextmanager
def mapped(path: Path) -> Iterator[Tuple[Any, Span]]:
    """Give the bytes of a file, mapped to memory, and the span of all of them.

    Raises:
        ValueError: the file is empty.
        OSError: it cannot be read.
    """
    with open(str(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content, (0, size)


def _finds_external(content: Any, message: str, span: Span, depth: int) -> bool:
    if depth == 0:
        raise ValueError("its messages are nested too deeply")
    if message == "tensor":
        return any(
            number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)
            for number, value in fields(content, span)
        )
    children = CHILDREN[message]
    for number, value in fields(content, span):
        if number in children:
            if not isinstance(value, tuple):
                raise ValueError(f"field {number} of its {message} holds no message")
            if _finds_external(content, children[number], value, depth - 1):
                return True
    return False


def fields(content: Any, span: Span) -> Iterator[Tuple[int, Union[int, Span]]]:
    """Yield the number of each field with its value: a whole number, or where its bytes lie."""
    place, end = span
    while place < end:
        tag, place = _varint(content, place, end)
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if kind == VARINT:
            value, place = _varint(content, place, end)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _varint(content, place, end)
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            raise ValueError(f"byte {place} is no field")
        if size > end - place:
            raise ValueError(f"a field at byte {place} is longer than its message")
        yield number, (place, place + size)
        place += size


def _varint(content: Any, place: int, end: int) -> Tuple[int, int]:
    """Return a whole number, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise ValueError("it is cut off")
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"the number before byte {place} is too long")
