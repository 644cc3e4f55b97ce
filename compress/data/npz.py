"""Read arrays out of a .npz file; nothing in it is run, sizes are checked before memory is taken.

An array that is stored as it is, as `numpy.savez` does, is mapped; a compressed one, as of
`numpy.savez_compressed`, is read.
"""

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.files import check_readable

__all__ = ["NpzArray", "open_npz"]

MOST_UNPACKED = 1 << 32  # bytes of a compressed array
MOST_PACKING = 100  # times smaller; images are packed to a half or third
SMALL = 1 << 28  # bytes, up to which it does not matter how an array is packed
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a member of a zip file; two lengths end it


@dataclass(frozen=True, kw_only=True)
class NpzArray:
    """One array of a file, of which the header alone was read.

    Attributes:
        path: of the file.
        name: of the array.
        shape: as its header says; the bytes for it are there.
        dtype: never of objects.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    member: zipfile.ZipInfo
    start: int  # bytes of the member before the first element
    fortran_order: bool

    def read(self) -> NDArray[Any]:
        """Return the array, mapped where it is stored as it is.

        Raises:
            UserInputError: its bytes are damaged.
        """
        try:
            stored = self.member.compress_type == zipfile.ZIP_STORED
            count = int(np.prod(self.shape))
            flat = self._mapped(count) if stored and count else self._unpacked(count)
        except Exception as err:  # damaged bytes raise nearly anything
            raise UserInputError(
                f"array {self.name} of {self.path} cannot be read ({err}); write the file again"
            ) from err
        return flat.reshape(self.shape[::-1]).T if self.fortran_order else flat.reshape(self.shape)

    def _mapped(self, count: int) -> NDArray[Any]:
        with open(self.path, "rb") as file:
            file.seek(self.member.header_offset)
            *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        before = self.member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
        # Changes stay in memory: torch wants to be able to write.
        mapped = np.memmap(
            *(self.path, self.dtype),
            mode="c",
            offset=before + self.start,
            shape=(count,),
        )
        return np.asarray(mapped)

    def _unpacked(self, count: int) -> NDArray[Any]:
        flat = np.empty(count, dtype=self.dtype)
        rest = flat.view(np.uint8).data if flat.nbytes else memoryview(b"")
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            file.read(self.start)
            while rest:
                content = file.read(min(len(rest), 1 << 20))
                if not content:
                    raise ValueError("it is cut off")
                rest[: len(content)] = content
                rest = rest[len(content) :]
            file.read(1)  # at the end the checksum is compared
        return flat


def open_npz(path: Path, names: Sequence[str]) -> Mapping[str, NpzArray]:
    """Return those of the named arrays that a file has.

    Raises:
        UserInputError: it is no .npz file, or an array is of objects, damaged, or too large.
    """
    check_readable(path, "data file")
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename: info for info in archive.infolist()}
            members = {name: held[f"{name}.npy"] for name in names if f"{name}.npy" in held}
            return {name: _opened(path, name, archive, member) for name, member in members.items()}
    except UserInputError:
        raise
    except Exception as err:  # damaged bytes raise nearly anything
        raise UserInputError(
            f"data file {path} cannot be read ({err}); expected a file that numpy.savez wrote"
        ) from err


def _opened(path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NpzArray:
    with archive.open(member) as file:
        shape, fortran_order, dtype = _header(file)
        start = file.tell()
    if dtype.hasobject:
        raise UserInputError(
            f"array {name} of {path} holds Python objects, which are not read as they can run "
            "code; expected numbers or text of fixed length, such as numpy.array([...], dtype=str)"
        )
    needed = start + math.prod(shape) * dtype.itemsize
    if needed != member.file_size:
        raise UserInputError(
            f"array {name} of {path} has {member.file_size} bytes, its header says {needed}; write "
            "the file again"
        )
    _check_packing(path, name, member)
    return NpzArray(
        path=path,
        name=name,
        shape=shape,
        dtype=dtype,
        member=member,
        start=start,
        fortran_order=fortran_order,
    )


def _check_packing(path: Path, name: str, member: zipfile.ZipInfo) -> None:
    stored = member.compress_type == zipfile.ZIP_STORED
    if stored and not member.file_size <= member.compress_size <= path.stat().st_size:
        raise UserInputError(f"array {name} of {path} is cut off; write the file again")
    packed_hard = member.file_size > SMALL + MOST_PACKING * member.compress_size
    if not stored and (packed_hard or member.file_size > MOST_UNPACKED):
        raise UserInputError(
            f"array {name} of {path} would unpack from {member.compress_size} to "
            f"{member.file_size} bytes; expected at most {MOST_UNPACKED} and {MOST_PACKING} times "
            "as many; write it with numpy.savez, which does not compress and is mapped"
        )


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the format, expected (1, 0) or (2, 0)")
    shape, fortran_order, dtype = readers[version](file)
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, fortran_order, dtype
