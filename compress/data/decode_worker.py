"""Decode image files, a run of them at a time: in this process, or as a process of its own.

Started as `python -m compress.data.decode_worker` it reads lines of JSON: first the task, then
runs of files, and answers each run with a line. It ends when its input does, so it never outlives
whoever started it. It loads numpy and Pillow alone, which takes a quarter of a second and 40 MB;
torch stays where it is. Threads would not do: with small images the interpreter's lock is held
most of the time.
"""

import contextlib
import gc
import hashlib
import io
import json
import os
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from compress.runtime.pictures import (
    MOST_BYTES,
    DamagedPictureError,
    open_picture,
    prepare,
    wanted_side,
    with_channels,
)
from compress.runtime.preprocessing import Preprocessing

__all__ = ["Decoded", "Run", "Task", "decode_runs"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is done with every file.

    Attributes:
        preprocessing: how pictures are prepared; None only looks whether they can be decoded.
        output: the file that prepared pixels are written to; None throws them away.
        start: bytes of `output` before the pixels of the first image.
    """

    preprocessing: dict[str, Any] | None
    output: str | None = None
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """Files that follow one another.

    Attributes:
        first: place of the first among all files.
        paths: of the files.
    """

    first: int
    paths: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What is known of a file after it was decoded.

    Attributes:
        sha256: of the file, hexadecimal; empty where it could not be read.
        size: width and height as the file has them, pixels.
        crc: CRC-32 of the prepared pixels.
        damage: what is wrong, in a few words; None where nothing is.
    """

    sha256: str
    size: tuple[int, int]
    crc: int
    damage: str | None


def decode_runs(task: Task, runs: Iterable[Run]) -> Iterator[list[Decoded]]:
    """Decode the files of each run, write their pixels, and yield what is known of them."""
    given = task.preprocessing
    preprocessing = None if given is None else Preprocessing.from_dict(given)
    # To find damage any size will do.
    wanted = 1 if preprocessing is None else wanted_side(preprocessing)
    with contextlib.ExitStack() as stack:
        output = task.output and stack.enter_context(open(task.output, "r+b", buffering=0))
        for run in runs:
            found = [_decode(path, preprocessing, wanted) for path in run.paths]
            if output and all(pixels is not None for _, pixels in found):
                _write(output, task.start, run.first, [pixels for _, pixels in found])
            yield [decoded for decoded, _ in found]


def _decode(
    path: str, preprocessing: Preprocessing | None, wanted: int | None
) -> tuple[Decoded, Any]:
    content, size, pixels = b"", (0, 0), None
    try:
        content = _content(path)
        with open_picture(io.BytesIO(content), wanted=wanted) as image:
            kind, size = image.format, image.size
            if kind == "PNG":  # its checksums are looked at by this alone, which uses it up
                image.verify()
            else:
                pixels = _pixels(image, preprocessing)
        if kind == "PNG" and preprocessing is not None:
            with open_picture(io.BytesIO(content), wanted=wanted) as image:
                pixels = _pixels(image, preprocessing)
    except (DamagedPictureError, OSError) as err:
        damage = err.strerror if isinstance(err, OSError) else None
        return _damaged(content, size, damage or str(err)), None
    decoded = Decoded(
        sha256=hashlib.sha256(content).hexdigest(),
        size=size,
        crc=zlib.crc32(pixels.data) if pixels is not None else 0,
        damage=None,
    )
    return decoded, pixels


def _damaged(content: bytes, size: tuple[int, int], damage: str) -> Decoded:
    digest = hashlib.sha256(content).hexdigest() if content else ""
    return Decoded(sha256=digest, size=size, crc=0, damage=damage)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        held = os.fstat(file.fileno()).st_size
        if held > MOST_BYTES:
            raise DamagedPictureError(f"{held} bytes, expected at most {MOST_BYTES}")
        return file.read(held)


def _pixels(image: Any, preprocessing: Preprocessing | None) -> "np.ndarray | None":
    if preprocessing is not None:
        return prepare(with_channels(image, preprocessing.channels), preprocessing)
    if image.format != "PNG":
        image.draft("RGB", (1, 1))  # JPEG alone: an eighth of its size shows any truncation too
        image.load()
    return None


def _write(file: BinaryIO, start: int, first: int, pixels: Sequence[Any]) -> None:
    content = np.stack(pixels).reshape(-1).data
    file.seek(start + first * (len(content) // len(pixels)))
    while content:  # an unbuffered file may take a part
        content = content[file.write(content) :]


def _lines(task_line: str, runs: Iterable[str]) -> Iterator[str]:
    task = Task(**json.loads(task_line))
    read = (Run(**json.loads(line)) for line in runs)
    for answers in decode_runs(task, read):
        yield json.dumps([vars(answer) for answer in answers])


def _main() -> None:
    warnings.simplefilter("ignore")  # of pictures that are large, which are refused in words
    gc.freeze()  # what was imported stays; pictures are freed without looking for circles
    gc.set_threshold(100_000)
    task_line = sys.stdin.readline()
    if not task_line:
        return
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        for line in _lines(task_line, sys.stdin):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _main()
