"""Files that `torch.save` wrote before version 1.6: pickles, then the bytes of every storage.

They carry no checksum. The order is: a magic number, the version, facts about the machine, the
value, the keys of its storages, and for each key the number of values (int64) and the values.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.pickle_outline import PickleOutline
from compress.checkpoint.plain_values import (
    MalformedError,
    PickledName,
    StorageRecord,
    storage_dtype,
)

__all__ = ["LegacyFile"]

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


class LegacyFile:
    """One open file; `content` is its outline, see `TorchArchive`.

    Raises:
        MalformedError: it is damaged, or of another kind.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  # closed by __exit__
        self._itemsizes: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "LegacyFile":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def nbytes(self, storage: StorageRecord) -> int:
        """Return how many bytes the file holds for a storage."""
        if storage.key not in self._places:
            raise MalformedError(f"the values {storage.key} are missing")
        held = self._places[storage.key][1] - storage.start * storage.itemsize
        # A view of a storage, as files before 2019 have them, takes a part of it.
        return min(max(held, 0), storage.nbytes)

    def bytes_of(self, storage: StorageRecord) -> Tensor:
        """Return the bytes of a storage as uint8."""
        place = self._places[storage.key][0] + storage.start * storage.itemsize
        self._file.seek(place)
        content = np.frombuffer(bytearray(self._file.read(self.nbytes(storage))), dtype=np.uint8)
        return torch.from_numpy(content)

    def check_rest(self, read: set[str]) -> None:
        """There is nothing to check: these files have no checksums."""

    def _read(self) -> None:
        outline = PickleOutline(self._file, self._persistent)
        if outline.load() != MAGIC or outline.load() != VERSION:
            raise MalformedError("it does not begin as a file of torch.save")
        outline.load()  # byte order and sizes of the machine
        self.content: Any = outline.load()
        self.unknown = outline.unknown
        self._find_places(outline.load())

    def _persistent(self, saved: Any) -> Any:
        """What stands for ("storage", class, key, device, count, view) or ("module", class, …)."""
        kind = saved[0] if isinstance(saved, tuple) and saved else None
        if kind == "module" and len(saved) > 1:
            return saved[1] if isinstance(saved[1], PickledName) else PickledName("?")
        if kind != "storage" or len(saved) < 5:
            raise MalformedError("it refers to something that is no storage")
        dtype, key, count = storage_dtype(saved[1]), str(saved[2]), saved[4]
        view = saved[5] if len(saved) > 5 else None
        start = 0
        if isinstance(view, tuple) and len(view) == 3:
            start, count = view[1:]
        if not all(type(number) is int and number >= 0 for number in (start, count)):
            raise MalformedError("a storage has no size")
        self._itemsizes[key] = dtype.itemsize
        record = StorageRecord(key=key, itemsize=dtype.itemsize, count=count, start=start)
        return record, dtype

    def _find_places(self, keys: Any) -> None:
        if not isinstance(keys, list):
            raise MalformedError("it has no list of its storages")
        end = os.fstat(self._file.fileno()).st_size
        for key in map(str, keys):
            count = int.from_bytes(self._file.read(8), "little", signed=True)
            place, size = self._file.tell(), count * self._itemsizes.get(key, 1)
            if count < 0 or place + size > end:
                raise MalformedError(f"the values {key} end behind the end of the file")
            self._places[key] = (place, size)
            self._file.seek(place + size)
