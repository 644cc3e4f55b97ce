"""Files that are whole or not there: written beside, synced, renamed; and their sha256."""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from compress.errors import UserInputError

__all__ = [
    "check_output",
    "check_readable",
    "replacing",
    "replacing_folder",
    "sha256_of",
    "write_json",
    "write_text",
]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there, synced, when the block ends well.

    A block that raises, or a process that is killed, leaves `path` as it was.

    Raises:
        UserInputError: the folder of `path` cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix="." + path.name + ".", suffix=".part", dir=path.parent
        )
        os.close(handle)
    except OSError as err:
        raise UserInputError(
            f"{path} cannot be written ({err.strerror}); give another place with -o/--output"
        ) from err
    part = Path(name)
    try:
        yield part
        _sync(part)
        os.chmod(
            part, 0o666 & ~_umask()
        )  # mkstemp makes 0600, which would hide results from a group
        os.replace(part, path)
        _sync(path.parent)
    finally:
        if part.exists():
            part.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; move it there, synced, when the block ends well.

    What stood at `path` is moved aside first and removed last, so that it is lost in no case but
    the wanted one: a process that is killed between leaves it as `.NAME.old`.

    Raises:
        UserInputError: the parent of `path` cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="." + path.name + ".", suffix=".part", dir=path.parent))
    except OSError as err:
        raise UserInputError(
            f"{path} cannot be written ({err.strerror}); give another place with -o/--output"
        ) from err
    old = path.with_name("." + path.name + ".old")
    try:
        yield part
        for file in part.rglob("*"):
            _sync(file)
        os.chmod(part, 0o777 & ~_umask())
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_readable(path: Path, what: str) -> Path:
    """Return `path` when it is a file that can be opened.

    Raises:
        UserInputError: it is missing, a folder, empty, or not readable.
    """
    path = Path(path)
    if not path.exists():
        raise UserInputError(f"{what} {path} does not exist; check the path")
    if not path.is_file():
        raise UserInputError(f"{what} {path} is not a file; give the path of one file")
    if path.stat().st_size == 0:
        raise UserInputError(f"{what} {path} is empty (0 bytes); expected saved weights")
    if not os.access(path, os.R_OK):
        raise UserInputError(f"{what} {path} is not readable; check its permissions")
    return path


def check_output(path: Path, *, force: bool) -> Path:
    """Return `path` when it may be written.

    Raises:
        UserInputError: it exists and `force` is off, or it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserInputError(f"output {path} is a folder; expected the name of a file")
    if path.exists() and not force:
        raise UserInputError(
            f"output {path} exists; give another name with -o/--output, or --force to replace it"
        )
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
