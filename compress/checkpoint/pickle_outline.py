"""Read what a pickle says without doing it: no import, no call, no array, in bounded time.

A pickle is a program for a small stack machine. This is that machine without its two dangerous
instructions: importing gives a name (`PickledName`), calling gives a record (`plain_values.call`).
Tensors come out as `TensorRecord`, so their sizes are known before any of them exists.

Bounded: every read is at most as long as the file, the number of instructions is limited, copies
are counted, and keys of mappings are words and numbers alone (nested tuples that share their parts
take exponential time to hash).
"""

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from compress.checkpoint.plain_values import (
    MalformedError,
    Opaque,
    PickledName,
    Record,
    call,
    new,
)

__all__ = ["MAX_INSTRUCTIONS", "PickleOutline"]

MAX_INSTRUCTIONS = 1_500_000  # some 50,000 tensors; a few seconds
MAX_READ = 1 << 28  # bytes of one value; arrays stand in pickles whole
MAX_COPIED = 1 << 26  # values
MARK = object()


class PickleOutline:
    """Reads pickles of protocols 2 to 5 from a file.

    Args:
        file: read from where it stands, up to the end of one pickle for each `load`.
        persistent: gives what stands for a persistent id, in torch's files a storage.

    Attributes:
        unknown: names that were called and have no stand-in, in the order of the file.
    """

    def __init__(self, file: BinaryIO, persistent: Callable[[Any], Any]) -> None:
        self.unknown: list[str] = []
        self._file = file
        self._persistent = persistent
        self._steps = MAX_INSTRUCTIONS
        self._copies = MAX_COPIED
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the value of the next pickle.

        Raises:
            MalformedError: the bytes are no pickle of values, or take too long.
        """
        self._stack, self._memo = [], {}
        read, instructions = self._file.read, _INSTRUCTIONS
        for _ in range(self._steps):
            self._steps -= 1
            code = read(1)
            if code == b".":
                return self._pop()
            instruction = instructions.get(code)
            if instruction is None:
                raise MalformedError(f"{code!r} is no instruction of a pickle of weights")
            instruction(self)
        raise MalformedError(f"it takes more than {MAX_INSTRUCTIONS:,} instructions")

    def _take(self, count: int) -> bytes:
        if count > MAX_READ:
            raise MalformedError(f"a value of {count:,} bytes stands in its pickle")
        found = self._file.read(count)
        if len(found) < count:
            raise MalformedError("it ends in the middle")
        return found

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is MARK:
            raise MalformedError("its stack runs empty")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_mark(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is MARK:
                found = self._stack[i + 1 :]
                del self._stack[i:]
                return found
        raise MalformedError("a mark is missing")

    def _spend(self, count: int) -> None:
        self._copies -= count
        if self._copies < 0:
            raise MalformedError("it copies values without end")

    def _name(self, path: str) -> None:
        self._stack.append(PickledName(path))

    def _global(self) -> None:
        module, name = (self._file.readline(1000).rstrip(b"\n") for _ in range(2))
        self._name(f"{module.decode('utf-8')}.{name.decode('utf-8')}")

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(f"{module}.{name}" if isinstance(name, str) and isinstance(module, str) else "?")

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._made(call, function, arguments)

    def _new(self) -> None:
        arguments, kind = self._pop(), self._pop()
        self._made(new, kind, arguments)

    def _new_with_keywords(self) -> None:
        _keywords, arguments, kind = self._pop(), self._pop(), self._pop()
        self._made(new, kind, arguments)

    def _made(self, make: Callable[..., Any], function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise MalformedError("a call has no arguments")
        path = function.path if isinstance(function, PickledName | Opaque) else "?"
        made = make(path, arguments, self._spend)
        if isinstance(made, Opaque) and path not in self.unknown[:100]:
            self.unknown.append(path)
        self._stack.append(made)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Opaque):
            target.state = state[0] if isinstance(state, tuple) and state else state
        elif isinstance(target, Record):
            target.attributes = state

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict | Opaque):
            raise MalformedError("it fills something that is no mapping")
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((k, v) for k, v in pairs if isinstance(k, str | int | float | bytes))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise MalformedError("it fills something that is no list")

    def _append(self) -> None:
        value = self._pop()
        self._extend([value])

    def _tuple(self, count: int) -> None:
        found = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(found)))

    def _dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise MalformedError("it refers to a value that it does not hold")
        self._stack.append(self._memo[index])

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _text(self, form: str) -> None:
        self._push(self._take(self._number(form)).decode("utf-8", "surrogatepass"))

    def _old_text(self, form: str) -> None:
        self._push(self._take(self._number(form)).decode("latin-1"))  # a `str` of Python 2

    def _bytes(self, form: str) -> None:
        self._push(self._take(self._number(form)))

    def _long(self, form: str) -> None:
        self._push(int.from_bytes(self._take(self._number(form)), "little", signed=True))

    def _persistent_id(self) -> None:
        self._push(self._persistent(self._pop()))


def _pushing(make: Callable[[], Any]) -> Callable[[PickleOutline], None]:
    return lambda machine: machine._push(make())


def _frozen(machine: PickleOutline) -> None:
    machine._push(machine._pop_mark())


_INSTRUCTIONS: dict[bytes, Callable[[PickleOutline], Any]] = {
    # Opcodes as in `pickle`; those that only protocols 0 and 1 write are left out.
    b"\x80": lambda m: m._take(1),  # PROTO
    b"\x95": lambda m: m._take(8),  # FRAME: what it frames follows
    b"(": lambda m: m._push(MARK),
    b"0": lambda m: m._pop(),
    b"1": lambda m: m._pop_mark(),
    b"2": lambda m: m._push(m._top()),
    b"N": _pushing(lambda: None),
    b"\x88": _pushing(lambda: True),
    b"\x89": _pushing(lambda: False),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"G": lambda m: m._push(m._number(">d")),
    b"\x8a": lambda m: m._long("<B"),
    b"\x8b": lambda m: m._long("<I"),
    b"X": lambda m: m._text("<I"),
    b"\x8c": lambda m: m._text("<B"),
    b"\x8d": lambda m: m._text("<Q"),
    b"T": lambda m: m._old_text("<I"),
    b"U": lambda m: m._old_text("<B"),
    b"B": lambda m: m._bytes("<I"),
    b"C": lambda m: m._bytes("<B"),
    b"\x8e": lambda m: m._bytes("<Q"),
    b"\x96": lambda m: m._bytes("<Q"),
    b")": _pushing(tuple),
    b"]": _pushing(list),
    b"}": _pushing(dict),
    b"\x8f": _pushing(list),  # a set: what is in it, unhashed
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"t": lambda m: m._push(tuple(m._pop_mark())),
    b"l": _frozen,
    b"\x91": _frozen,
    b"d": lambda m: m._dict(),
    b"a": lambda m: m._append(),
    b"e": lambda m: m._extend(m._pop_mark()),
    b"\x90": lambda m: m._extend(m._pop_mark()),
    b"s": lambda m: m._set_item(),
    b"u": lambda m: m._set_items(m._pop_mark()),
    b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"h": lambda m: m._get(m._number("<B")),
    b"j": lambda m: m._get(m._number("<I")),
    b"c": lambda m: m._global(),
    b"\x93": lambda m: m._stack_global(),
    b"R": lambda m: m._reduce(),
    b"\x81": lambda m: m._new(),
    b"\x92": lambda m: m._new_with_keywords(),
    b"b": lambda m: m._build(),
    b"Q": lambda m: m._persistent_id(),
}
