"""The file that decoded images lie in: header, table, pixels.

compress.images/1 and a line of JSON, filled up to 4096 bytes
per image the sha256 of its file and the CRC-32 of its pixels, 36 bytes; filled up to 4096
pixels, (N, C, H, W) uint8, as the preprocessing prepares them; or nothing
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError

__all__ = ["CacheFile", "Table", "is_cache_file", "open_table"]

MAGIC = b"compress.images/1\n"
BLOCK = 4096  # bytes; header, table and pixels begin at multiples
ROW = np.dtype([("sha256", "u1", (32,)), ("crc", "<u4")])


@dataclass(frozen=True, kw_only=True)
class CacheFile:
    """What a file of decoded images must say of itself.

    Attributes:
        path: where it lies.
        key: hexadecimal sha256 of what its content depends on.
        count: of images.
        image_bytes: of the pixels of one image; 0 where pixels are not kept.
    """

    path: Path
    key: str
    count: int
    image_bytes: int

    @property
    def pixels_at(self) -> int:
        """Bytes before the pixels."""
        return BLOCK + -(-self.count * ROW.itemsize // BLOCK) * BLOCK

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.pixels_at + self.count * self.image_bytes

    def pixels(self) -> NDArray[np.uint8]:
        """Map the pixels, (N, C * H * W)."""
        shape = (self.count, self.image_bytes)
        mapped = np.memmap(self.path, dtype=np.uint8, mode="r", offset=self.pixels_at, shape=shape)
        return np.asarray(mapped)

    def write_table(self, part: Path, table: "Table") -> None:
        """Write header and table into `part`, which holds the pixels already."""
        rows = np.empty(self.count, dtype=ROW)
        rows["sha256"], rows["crc"] = table.sha256, table.crcs
        with open(part, "r+b") as file:
            file.write(self._header(rows, one_size=table.one_size))
            file.write(rows.tobytes())

    def _header(self, rows: NDArray[Any], *, one_size: bool) -> bytes:
        told = {
            "key": self.key,
            "count": self.count,
            "image_bytes": self.image_bytes,
            "one_size": one_size,
            "table_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        }
        return (MAGIC + json.dumps(told).encode() + b"\n").ljust(BLOCK, b"\0")


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is known of N images.

    Attributes:
        sha256: (N, 32) uint8, of the content of each file.
        crcs: (N,) uint32, of the pixels of each image.
        one_size: whether every file has the very size of the network's input.
    """

    sha256: NDArray[np.uint8]
    crcs: NDArray[np.uint32]
    one_size: bool


def open_table(wanted: CacheFile) -> Table | None:
    """Return the table of a file; None where it is not there or not as it should be.

    Raises:
        UserInputError: it is there and cannot be read.
    """
    try:
        with open(wanted.path, "rb") as file:
            header = file.read(BLOCK)
            content = file.read(wanted.count * ROW.itemsize)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    except OSError as err:
        raise UserInputError(
            f"decoded images in {wanted.path} cannot be read ({err.strerror}); give another folder "
            "with --cache"
        ) from err
    if len(content) != wanted.count * ROW.itemsize or size != wanted.size:
        return None
    rows = np.frombuffer(content, dtype=ROW)
    one_size = _told(header).get("one_size") is True
    if wanted._header(rows, one_size=one_size) != header:
        return None
    with contextlib.suppress(OSError):  # of a folder that can be read alone
        os.utime(wanted.path)  # used just now
    return Table(sha256=rows["sha256"], crcs=rows["crc"], one_size=one_size)


def is_cache_file(path: Path) -> bool:
    """Say whether `path` begins as the files of this kind do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _told(header: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(header[len(MAGIC) :].split(b"\n", 1)[0])
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
