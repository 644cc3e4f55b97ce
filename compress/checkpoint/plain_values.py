"""What stands in for the objects that a pickle names: plain records, and nothing that runs.

A pickle of weights names perhaps twenty functions and classes. Each has a stand-in here that only
writes down what it is given; a name without one becomes an `Opaque`. So a class that is not
installed, or a call that would delete a disk, are the same to the reader: words in a file.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = [
    "MalformedError",
    "Opaque",
    "PickledName",
    "Record",
    "StorageRecord",
    "TensorRecord",
    "UnreadableTensor",
    "call",
    "new",
    "storage_dtype",
]


class MalformedError(ValueError):
    """The bytes are no file of the kind that they claim to be; told to users by the callers."""


@dataclass(frozen=True)
class PickledName:
    """A function, class or constant that a pickle names, such as "torch.FloatStorage"."""

    path: str


class Record(dict[Any, Any]):
    """A mapping of a kind that `collections` knows; `attributes` holds what hung on the object."""

    attributes: Any = None


@dataclass(eq=False)
class Opaque:
    """An object that is not rebuilt.

    Attributes:
        path: of its class, or of the function that would have made it.
        state: what it would have been given as its attributes.
    """

    path: str
    state: Any = None


@dataclass(frozen=True, kw_only=True)
class StorageRecord:
    """A block of values in the file.

    Attributes:
        key: names it in the file.
        itemsize: bytes of one value.
        count: values.
        start: index of the first value in the block `key`, above 0 for a view in very old files.
    """

    key: str
    itemsize: int
    count: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.count * self.itemsize


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """What a file says about one tensor; offset and strides count values, as in torch."""

    storage: StorageRecord
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class UnreadableTensor:
    """A tensor of a kind that weights are not made of; `why` completes "it is …"."""

    why: str


STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
QUANTISED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")
NUMBER = re.compile(r"[<>|=]?([biufc]\d{1,2}|\?|bool)")


def storage_dtype(name: Any) -> torch.dtype:
    """Return the type of the values in a storage of a pickled class.

    Raises:
        MalformedError: it is no class of storages.
    """
    last = name.path.rpartition(".")[2] if isinstance(name, PickledName) else ""
    if last in QUANTISED:
        return torch.uint8  # its tensors are refused by name; its size is never asked for
    if last not in STORAGES:
        raise MalformedError(f"{name} is no type of values")
    return STORAGES[last]


def call(path: str, arguments: Sequence[Any], spend: Callable[[int], None]) -> Any:
    """Return the stand-in for what the function or class `path` would have made.

    Args:
        path: dotted name.
        arguments: of the call.
        spend: is told how many values a copy takes, and stops a file that copies without end.

    Raises:
        MalformedError: the arguments are not those that the function takes.
    """
    if path in TENSORS:
        return TENSORS[path](*arguments)
    if path in COPIES:
        spend(sum(len(value) for value in arguments if hasattr(value, "__len__")))
        return COPIES[path](*arguments)
    return Opaque(path)


def new(path: str, arguments: Sequence[Any], spend: Callable[[int], None]) -> Any:
    """Return the stand-in for an instance of the class `path`."""
    if path == "torch.nn.parameter.Parameter" and arguments:
        return arguments[0]
    return call(path, arguments, spend)


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any, dtype: Any = None
) -> TensorRecord | UnreadableTensor:
    if not isinstance(storage, tuple) or len(storage) != 2:
        raise MalformedError("a tensor has no storage")
    record, own = storage
    whole = _whole_numbers((offset, *shape, *stride))
    return TensorRecord(
        storage=record,
        dtype=own if dtype is None else dtype,
        offset=whole[0],
        shape=whole[1 : 1 + len(shape)],
        stride=whole[1 + len(shape) :],
    )


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> TensorRecord | UnreadableTensor:
    """The form for types that have no class of storages of their own, such as float8."""
    last = dtype.path.rpartition(".")[2] if isinstance(dtype, PickledName) else ""
    found = getattr(torch, last, None)
    if not isinstance(found, torch.dtype):
        raise MalformedError(f"{dtype} is no type of values")
    return _tensor(storage, offset, shape, stride, dtype=found)


def _subclass(function: Any, _kind: Any, arguments: Any, *_state: Any) -> Any:
    if not isinstance(function, PickledName) or function.path not in TENSORS:
        return UnreadableTensor(f"made by {getattr(function, 'path', function)}")
    if function.path.endswith("_rebuild_from_type_v2"):
        raise MalformedError("a tensor of a tensor")
    return TENSORS[function.path](*arguments)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _unreadable(why: str) -> Callable[..., UnreadableTensor]:
    return lambda *_arguments: UnreadableTensor(why)


def _record(*arguments: Any) -> Record:
    """Any mapping of `collections`; the first argument of a defaultdict is its factory."""
    pairs = next((a for a in arguments if isinstance(a, list | tuple | dict)), ())
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return Record({k: v for k, v in items if isinstance(k, str | int | float)})


def _values(*arguments: Any) -> list[Any]:
    """A set, or a list: what is in it, in the order of the file."""
    return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []


def _encode(text: Any, *_encoding: Any) -> bytes:
    return str(text).encode("latin-1")  # how protocol 2 spells bytes


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts).replace("//", "/")


def _scalar(dtype: Any, raw: Any = b"", *_rest: Any) -> Any:
    if not isinstance(dtype, str) or not NUMBER.fullmatch(dtype) or not isinstance(raw, bytes):
        return Opaque("numpy.scalar")
    return np.frombuffer(raw, dtype=dtype)[0].item()


def _dtype(name: Any, *_rest: Any) -> Any:
    return name.decode("latin-1") if isinstance(name, bytes) else name


def _whole_numbers(values: Iterable[Any]) -> tuple[int, ...]:
    found = tuple(values)
    if not all(type(value) is int and value >= 0 for value in found):
        raise MalformedError("a tensor has a size that is no whole number")
    return found


TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_qtensor": _unreadable("quantised"),
    "torch._utils._rebuild_sparse_tensor": _unreadable("sparse"),
    "torch._utils._rebuild_nested_tensor": _unreadable("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("on the meta device, without data"),
    "torch._utils._rebuild_device_tensor_from_numpy": _unreadable("of another kind of device"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("wrapped by a class of its own"),
}
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
COPIES: dict[str, Callable[..., Any]] = {
    **{f"collections.{kind}": _record for kind in ("OrderedDict", "defaultdict", "Counter")},
    **{f"builtins.{kind}": _values for kind in ("set", "frozenset", "list")},
    **{f"__builtin__.{kind}": _values for kind in ("set", "frozenset", "list")},  # Python 2
    **{f"{home}.{kind}": _path for home in ("pathlib", "pathlib._local") for kind in PATHS},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "torch.Size": _first,
    "torch.device": lambda *parts: ":".join(map(str, parts)),
}
