"""The errors that a user can meet, each with the exit code that its door ends with.

A message is one sentence or two: what was wrong, what was received, what was expected, what to do.

=====  ==========================================================
code   meaning
=====  ==========================================================
0      done
1      an error of ours (anything that is not a `CompressError`)
2      wrong usage of the command line (argparse)
3      bad input, or a model that cannot be handled
4      a tool or package is missing or of the wrong version
5      the result misses a quality bar that was asked for
6      a disk is full, a quota used up, or a limit on the size of files met
130    interrupted from the keyboard
=====  ==========================================================
"""

import errno
import re
import shutil
from pathlib import Path
from typing import List, Optional, Union

__all__ = [
    "AccuracyError",
    "CompressError",
    "DiskFullError",
    "ToolchainError",
    "UnsupportedModelError",
    "UserInputError",
    "disk_error",
]

UNTOLD = -1  # a write came short, and nobody said why
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the limit on the size of files (ulimit -f)",
    UNTOLD: "the disk takes no more of it, being full or at a quota or limit",
}
# What writers say that keep the number of the error to themselves: torch, numpy and, in Rust,
# safetensors. Behind torch's words stands a write that came short, for whatever reason.
SHORT_WRITE = re.compile(r"inline_container\.cc|iostream error|\d+ requested and \d+ written")
IN_WORDS = re.compile(r"\(os error (\d+)\)")


class CompressError(Exception):
    """The root of every error that is told to the user without a traceback."""

    exit_code = 1


class UserInputError(CompressError):
    """A file, option or value that was given cannot be used."""

    exit_code = 3


class UnsupportedModelError(CompressError):
    """The model is readable, but not one that the asked step can work on."""

    exit_code = 3


class ToolchainError(CompressError):
    """A package, device or external tool is missing or does not fit."""

    exit_code = 4


class AccuracyError(CompressError):
    """The work was done, but its result misses a stated quality bar."""

    exit_code = 5


class DiskFullError(CompressError):
    """A file cannot be written for want of space: disk, quota, or limit on the size of files."""

    exit_code = 6


def disk_error(
    err: BaseException, path: Union[str, Path, None], *, wanted: Optional[int] = None
) -> Optional[CompressError]:
    """Return the error to raise where `err` means that the disk does not take a file; else None.

    Args:
        err: what a writer raised.
        path: of the file, as the user knows it.
        wanted: bytes that the file takes, where they are known.
    """
    number = _errno_of(err)
    named = "the output" if path is None else path
    if number == errno.EROFS:
        return UserInputError(
            f"{named} cannot be written: the file system is read-only; give another place with "
            "-o/--output"
        )
    if number not in FULL:
        return None
    space = [] if wanted is None else [f"{wanted / 2**20:.1f} MiB wanted"]
    if path is not None and number in (errno.ENOSPC, UNTOLD):
        space += _free_beside(Path(path))
    told = f" ({', '.join(space)})" if space else ""
    return DiskFullError(
        f"{named} cannot be written: {FULL[number]}{told}; free space there, or give another place "
        "with -o/--output"
    )


def _errno_of(err: BaseException) -> Optional[int]:
    if isinstance(err, OSError) and err.errno is not None:
        return err.errno
    words = IN_WORDS.search(str(err))
    if words:
        return int(words.group(1))
    if not SHORT_WRITE.search(str(err)):
        return None
    behind = err.__cause__ or err.__context__  # torch writes through a file that says why
    return behind.errno if isinstance(behind, OSError) and behind.errno else UNTOLD


def _free_beside(path: Path) -> List[str]:
    for folder in path.absolute().parents:
        if folder.is_dir():
            return [f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free"]
    return []
