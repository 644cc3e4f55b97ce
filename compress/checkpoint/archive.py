"""The zip archives that `torch.save` writes: checked before anything in them is believed.

An archive holds `NAME/data.pkl`, which tells the values, and `NAME/data/KEY`, the bytes of one
storage each. torch stores members as they are, one behind another, with a CRC-32 that `torch.load`
does not look at. Here an archive whose members are compressed (3 MB can claim 3 GB), lie over one
another, or do not match their CRC is refused.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.pickle_outline import PickleOutline
from compress.checkpoint.plain_values import MalformedError, StorageRecord, storage_dtype

__all__ = ["TorchArchive"]

MAX_MEMBERS = 200_000
SMALLEST_MEMBER = 76  # bytes: two headers
MAX_OUTLINE = 1 << 28  # bytes of data.pkl
END = b"PK\x05\x06"
BLOCK = 1 << 20
ENCRYPTED = 0x1


class TorchArchive:
    """One open archive; `content` is its outline.

    Attributes:
        content: mappings, lists, words, numbers, and a `TensorRecord` for each tensor.
        unknown: names that its pickle calls and that have no stand-in.

    Raises:
        MalformedError: it is damaged, or not as torch writes it.
    """

    def __init__(self, path: Path) -> None:
        _check_count(path)
        self._zip = zipfile.ZipFile(path)
        self._sizes = _checked_sizes(self._zip, path.stat().st_size)
        self._root = _root(self._sizes)
        outline = PickleOutline(io.BytesIO(self._outline_bytes()), _storage)
        self.content: Any = outline.load()
        self.unknown = outline.unknown

    def __enter__(self) -> "TorchArchive":
        return self

    def __exit__(self, *_error: object) -> None:
        self._zip.close()

    def nbytes(self, storage: StorageRecord) -> int:
        """Return how many bytes the file holds for a storage.

        Raises:
            MalformedError: it holds none.
        """
        name = self._member(storage)
        if name not in self._sizes:
            raise MalformedError(f"the values {storage.key} are missing")
        return self._sizes[name]

    def bytes_of(self, storage: StorageRecord) -> Tensor:
        """Return the bytes of a storage as uint8, once their CRC-32 is right."""
        content = torch.empty(self.nbytes(storage), dtype=torch.uint8)
        view = content.numpy().data
        start = 0
        with self._zip.open(self._member(storage)) as member:
            while block := member.read(BLOCK):
                view[start : start + len(block)] = block
                start += len(block)
        return content

    def check_rest(self, read: set[str]) -> None:
        """Compare the CRC-32 of all storages but those of the keys `read`."""
        for name in self._sizes:
            if name.removeprefix(f"{self._root}/data/") not in read:
                with self._zip.open(name) as member:
                    while member.read(BLOCK):
                        pass

    def _member(self, storage: StorageRecord) -> str:
        return f"{self._root}/data/{storage.key}"

    def _outline_bytes(self) -> bytes:
        name = f"{self._root}/data.pkl"
        if self._sizes[name] > MAX_OUTLINE:
            raise MalformedError(f"its data.pkl has {self._sizes[name]:,} bytes")
        byteorder = f"{self._root}/byteorder"
        if byteorder in self._sizes and self._zip.read(byteorder) != b"little":
            raise MalformedError("it was written on a machine of the other byte order")
        return self._zip.read(name)


def _storage(saved: Any) -> tuple[StorageRecord, torch.dtype]:
    """What ("storage", class, key, device, count) stands for."""
    if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
        raise MalformedError("it refers to something that is no storage")
    dtype, key, count = storage_dtype(saved[1]), saved[2], saved[4]
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise MalformedError("a storage has no name or no size")
    return StorageRecord(key=key, itemsize=dtype.itemsize, count=count), dtype


def _check_count(path: Path) -> None:
    """A directory of millions of members takes minutes to read; its end tells their number."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        end = file.read()
    place = end.rfind(END)
    claimed = int.from_bytes(end[place + 10 : place + 12], "little") if place >= 0 else 0
    directory = int.from_bytes(end[place + 12 : place + 16], "little") if place >= 0 else 0
    if claimed == 0xFFFF and directory != 0xFFFFFFFF:
        claimed = directory // SMALLEST_MEMBER
    if claimed > MAX_MEMBERS:
        raise MalformedError(f"it has more than {MAX_MEMBERS:,} members")


def _checked_sizes(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise MalformedError(f"it has more than {MAX_MEMBERS:,} members")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise MalformedError(
            "it is a TorchScript program, not weights: load it with torch.jit.load and save its "
            "state_dict()"
        )
    sizes: dict[str, int] = {}
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise MalformedError(
                f"its member {member.filename!r} is compressed, which torch does not do: "
                "unpack it, and save it again with torch.save"
            )
        if member.flag_bits & ENCRYPTED or member.filename in sizes:
            raise MalformedError(f"its member {member.filename!r} is encrypted, or there twice")
        sizes[member.filename] = member.file_size
    for start, stop in _gaps(members, file_size):
        if start > stop:
            raise MalformedError("its members lie over one another")
    return sizes


def _gaps(members: list[zipfile.ZipInfo], file_size: int) -> Iterator[tuple[int, int]]:
    """The least end of each member's bytes, and where the next begins."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    starts = [member.header_offset for member in ordered[1:]]
    for member, following in zip(ordered, [*starts, file_size], strict=True):
        header = 30 + len(member.filename.encode("utf-8"))
        yield member.header_offset + header + member.file_size, following


def _root(sizes: dict[str, int]) -> str:
    roots = [name.removesuffix("/data.pkl") for name in sizes if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise MalformedError(f"it has {len(roots)} files data.pkl, as no file of torch.save")
    return roots[0]
