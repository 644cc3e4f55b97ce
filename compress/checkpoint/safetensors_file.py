"""`.safetensors` files, seen as the other kinds of files are: an outline, then bytes."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.plain_values import (
    MalformedError,
    StorageRecord,
    TensorRecord,
    UnreadableTensor,
)
from compress.optional import require

__all__ = ["METADATA_KEY", "SafetensorsFile"]

METADATA_KEY = "compress"  # what is not a tensor stands there as one JSON string
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


class SafetensorsFile:
    """One open file; `content` is its outline, see `TorchArchive`.

    Raises:
        MalformedError: its metadata are not those that we write.
    """

    unknown: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        reader = require("safetensors", "reading .safetensors files")
        self._file = reader.safe_open(path, framework="pt")
        state = {name: self._record(name) for name in self._file.keys()}  # noqa: SIM118
        head = (self._file.metadata() or {}).get(METADATA_KEY)
        self.content: Any = {**_head(head), "state_dict": state} if head else state

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *_error: object) -> None:
        del self._file

    def nbytes(self, storage: StorageRecord) -> int:
        """Return the bytes of a tensor; the package has compared them with the file."""
        return storage.nbytes

    def bytes_of(self, storage: StorageRecord) -> Tensor:
        """Return the bytes of a tensor as uint8."""
        tensor: Tensor = self._file.get_tensor(storage.key)
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    def check_rest(self, read: set[str]) -> None:
        """There is nothing to check: these files have no checksums of their own."""

    def _record(self, name: str) -> TensorRecord | UnreadableTensor:
        part = self._file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), DTYPES.get(part.get_dtype())
        if dtype is None:
            return UnreadableTensor(f"of the type {part.get_dtype()}")
        stride, count = [], 1
        for side in reversed(shape):
            stride.append(count)
            count *= side
        storage = StorageRecord(key=name, itemsize=dtype.itemsize, count=count)
        return TensorRecord(
            storage=storage, dtype=dtype, offset=0, shape=shape, stride=tuple(reversed(stride))
        )


def _head(text: str) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"its entry {METADATA_KEY!r} is no JSON ({err})") from err
    if not isinstance(head, dict):
        raise MalformedError(f"its entry {METADATA_KEY!r} is no JSON object")
    return head
