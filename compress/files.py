"""Files that are whole or not there, and the only place that replaces or removes any.

Written beside, synced, renamed. What is being written is called `.NAME.xxxxxxxx.part` and is locked
by its writer: a part that nobody holds was left by a process that was killed, and is swept by the
next that writes the same name.

Nothing is removed that is not known as ours: by the name of a part, or by a function that the
caller gives and that looks into the file or folder. What is in the way otherwise is moved aside, to
`NAME.superseded-1`, -2, and so on.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

from compress.errors import DiskFullError, UserInputError, disk_error

try:
    import fcntl
except ImportError:  # not on Windows, where leftovers are then never swept
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check_output",
    "check_readable",
    "is_superseded",
    "move_aside",
    "remove",
    "replacing",
    "replacing_folder",
    "sha256_of",
    "sweep_parts",
    "write_json",
    "write_text",
]

PART = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.part")  # as tempfile completes the name
SUPERSEDED = re.compile(r".*\.superseded-\d+")


@contextmanager
def replacing(path: Path, *, wanted: Optional[int] = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there, synced, when the block ends well.

    A block that raises, or a process that is killed, leaves `path` as it was.

    Args:
        path: of the file.
        wanted: bytes that it takes, for the message where the disk is full.

    Raises:
        UserInputError: the folder of `path` cannot be made or written to.
        DiskFullError: the disk does not take the file.
    """
    path = Path(path)
    with _told_of_disk(path, wanted), _part_beside(path, _new_file) as part:
        yield part
        _sync(part)
        os.chmod(
            part, 0o666 & ~_umask()
        )  # mkstemp makes 0600, which would hide results from a group
        os.replace(part, path)
        _sync(path.parent)


@contextmanager
def replacing_folder(path: Path, *, foreign_in: Callable[[Path], Sequence[str]]) -> Iterator[Path]:
    """Give a temporary folder beside `path`; move it there, synced, when the block ends well.

    What stood at `path` is moved aside first and removed last, so that it is lost in no case but
    the wanted one: a process that is killed between leaves it as `.NAME.old`, from where the next
    one takes it back.

    Args:
        path: of the folder; a link is followed.
        foreign_in: from a folder to the names in it that are not ours to remove.

    Raises:
        UserInputError: `path` holds something that is not ours, or its parent cannot be written to.
        DiskFullError: the disk does not take the folder.
    """
    path = Path(path).resolve()  # "." has no name
    old = path.with_name("." + path.name + ".old")
    if old.is_dir() and not path.exists():
        os.replace(old, path)
    _check_ours(path, foreign_in)
    with _told_of_disk(path), _part_beside(path, _new_folder) as part:
        yield part
        for file in part.rglob("*"):
            _sync(file)
        os.chmod(part, 0o777 & ~_umask())
        if old.exists():
            _dispose(old, foreign_in)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(part, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        _sync(path.parent)
        if old.exists():
            _dispose(old, foreign_in)


def move_aside(path: Path) -> Path:
    """Rename a file or folder to the first free of NAME.superseded-1, -2, …; return where it is."""
    number = 1
    while os.path.lexists(f"{path}.superseded-{number}"):
        number += 1
    aside = path.with_name(f"{path.name}.superseded-{number}")
    os.rename(path, aside)
    return aside


def is_superseded(path: Path) -> bool:
    """Whether a file or folder has a name that `move_aside` gives."""
    return SUPERSEDED.fullmatch(path.name) is not None


def remove(path: Path, *, is_ours: Callable[[Path], bool]) -> bool:
    """Remove a file or folder, where there is one and it is known as ours.

    Args:
        path: a link is not followed, and never removed.
        is_ours: looks into it.

    Returns:
        Whether it is gone.
    """
    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not is_ours(path):
        return False
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return True


def sweep_parts(folder: Path, *, name: Optional[str] = None, below: bool = False) -> None:
    """Remove what killed writers left in a folder; what a living one holds stays.

    Args:
        folder: where to look; one that is not there holds nothing.
        name: of the file or folder that they wrote; None for any.
        below: look into the folders below, too.
    """
    for root, folders, files in os.walk(str(folder)):
        for entry in (*folders, *files):
            found = PART.fullmatch(entry)
            if found and name in (None, found.group(1)):
                _sweep(Path(root, entry))
        folders[:] = [each for each in folders if not PART.fullmatch(each)] if below else []


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


@contextmanager
def _told_of_disk(path: Path, wanted: Optional[int] = None) -> Iterator[None]:
    """Turn a full or read-only disk into an error of ours, whoever met it."""
    try:
        yield
    except DiskFullError as err:  # of a file in a folder that is being written
        part = rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.part"
        raise DiskFullError(re.sub(part, lambda _: path.name, str(err))) from err
    except Exception as err:  # torch raises RuntimeError, safetensors an error of its own
        told = disk_error(err, path, wanted=wanted)
        if told is None:
            raise
        raise told from err


@contextmanager
def _part_beside(path: Path, new: Callable[[Path], Path]) -> Iterator[Path]:
    """Give a new file or folder that is locked until the block ends, and gone then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_parts(path.parent, name=path.name)
        part, lock = _new_locked(path, new)
    except OSError as err:
        raise disk_error(err, path) or UserInputError(
            f"{path} cannot be written ({err.strerror}); give another place with -o/--output"
        ) from err
    try:
        yield part
    finally:
        _delete(part)
        if lock is not None:
            os.close(lock)


def _new_file(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix="." + path.name + ".", suffix=".part", dir=path.parent)
    os.close(handle)
    return Path(name)


def _new_folder(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="." + path.name + ".", suffix=".part", dir=path.parent))


def _new_locked(path: Path, new: Callable[[Path], Path]) -> Tuple[Path, Optional[int]]:
    while True:
        part = new(path)
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked: once more
            lock = _hold(part)
            if lock is None or os.fstat(lock).st_nlink:
                return part, lock
            os.close(lock)


def _hold(part: Path, *, wait: bool = True) -> Optional[int]:
    """Lock a part and return its handle; None where that is not known here, or another has it."""
    if fcntl is None:
        return None
    handle = os.open(str(part), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep(part: Path) -> None:
    with contextlib.suppress(OSError):  # another one sweeps too, or may not
        lock = None if part.is_symlink() else _hold(part, wait=False)
        if lock is not None:
            _delete(part)
            os.close(lock)


def _delete(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _check_ours(path: Path, foreign_in: Callable[[Path], Sequence[str]]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise UserInputError(f"output {path} is a file; expected a folder, or a new name")
    foreign = ", ".join(sorted(foreign_in(path)))
    if foreign:
        raise UserInputError(
            f"output {path} also holds {foreign[:200]}, which would be lost; give another folder "
            "with -o/--output"
        )


def _dispose(old: Path, foreign_in: Callable[[Path], Sequence[str]]) -> None:
    """Remove what was replaced; what somebody put there meanwhile is kept beside."""
    if foreign_in(old):
        move_aside(old)
    else:
        shutil.rmtree(old, ignore_errors=True)


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
