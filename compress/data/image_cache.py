"""Decoded images of a folder in one file, so that the second epoch touches no JPEG.

The file is named by the sha256 of the names, sizes and times of all image files and of what is done
to pixels, so that a change of any of these is another file. It is written beside and renamed, under
a lock: a process that is killed leaves nothing that is believed, and of two that start at once
one waits for the other. A file whose length, header or table is not as it should be is made anew,
and an image whose pixels do not fit their CRC is decoded from its own file.

Where the pixels of a data set would take too much room the table is kept alone, and images are
decoded whenever they are read.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.cache_file import CacheFile, Table, is_cache_file, open_table
from compress.data.decode_worker import Task
from compress.data.first_pass import check_damage, decode_files
from compress.data.image_data import ImageSource, Preprocessing
from compress.data.pictures import FileSource
from compress.errors import UserInputError
from compress.files import remove, replacing

__all__ = ["OFF", "CachedSource", "ImageListing", "PreparedImages", "prepared_images"]

logger = logging.getLogger(__name__)

OFF = "off"
SUFFIX = ".images"
LARGEST = 16 << 30  # bytes of one file
MOST_KEPT = 32 << 30  # bytes of all files; beyond, those go that were not used for longest
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ImageListing:
    """Image files, and what tells whether they are still the same.

    Attributes:
        paths: absolute.
        names: of each, below the folder of the data set.
        states: (size in bytes, time of content, time of entry in nanoseconds) of each.
    """

    paths: Sequence[str]
    names: Sequence[str]
    states: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """Images that can be read.

    Attributes:
        source: gives them, in the order of the listing.
        sha256: (N, 32) uint8, of the content of each file.
        one_size: whether every file has the very size of the network's input.
    """

    source: ImageSource
    sha256: NDArray[np.uint8]
    one_size: bool


class CachedSource(FileSource):
    """Images that were decoded before, mapped from a file."""

    def __init__(
        self,
        paths: Sequence[str],
        preprocessing: Preprocessing,
        pixels: NDArray[np.uint8],
        crcs: NDArray[np.uint32],
    ) -> None:
        """Keep what is given.

        Args:
            paths: of the image files, which are read where the pixels are damaged.
            preprocessing: that the pixels were prepared by.
            pixels: (N, C * H * W), mapped.
            crcs: (N,), of the pixels of each image.
        """
        super().__init__(paths, preprocessing)
        self._pixels, self._crcs = pixels, crcs
        self._checked = np.zeros(len(paths), dtype=bool)

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, C, H, W).

        Raises:
            UserInputError: the pixels are damaged, and the image file is gone or has changed.
        """
        places = positions.numpy()
        images = torch.from_numpy(self._pixels[places]).view(-1, *self.shape)
        for row in np.flatnonzero(~self._checked[places]):
            self._check(images, int(row), int(places[row]))
        return images

    def _check(self, images: Tensor, row: int, place: int) -> None:
        """Compare an image with its CRC when it is read for the first time; that is enough."""
        if zlib.crc32(images[row].numpy().data) == self._crcs[place]:
            self._checked[place] = True
        else:
            images[row] = super().read(torch.tensor([place]))[0]


def prepared_images(
    listing: ImageListing, preprocessing: Preprocessing, *, cache: Path | str | None = None
) -> PreparedImages:
    """Return the images of a listing, decoded now unless they were before.

    Args:
        listing: the files.
        preprocessing: how pictures are prepared.
        cache: folder for decoded images; "off" decodes whenever an image is read; None is
            $XDG_CACHE_HOME/early-exit-compress/images, by default in ~/.cache.

    Raises:
        UserInputError: some of the images are damaged, or `cache` cannot be written to.
        ToolchainError: Pillow or tqdm is missing.
    """
    folder = _usable_folder(cache)
    if folder is None:
        seen = _decoded(listing, preprocessing, Task(preprocessing=None))
        source = FileSource(listing.paths, preprocessing)
        return PreparedImages(source=source, sha256=seen.sha256, one_size=seen.one_size)
    file = _file(folder, listing, preprocessing)
    table = open_table(file) or _made(file, listing, preprocessing)
    source = FileSource(listing.paths, preprocessing)
    if file.image_bytes:
        source = CachedSource(listing.paths, preprocessing, file.pixels(), table.crcs)
    return PreparedImages(source=source, sha256=table.sha256, one_size=table.one_size)


def _file(folder: Path, listing: ImageListing, preprocessing: Preprocessing) -> CacheFile:
    """Return the file that the images lie in, or will; without pixels if they take too much."""
    key, count = _key(listing, preprocessing), len(listing.paths)
    size = int(np.prod(preprocessing.shape))
    path = folder / (key + SUFFIX)
    file = CacheFile(path=path, key=key, count=count, image_bytes=size)
    if path.exists() and path.stat().st_size == file.size:
        return file
    room = min(LARGEST, shutil.disk_usage(folder).free // 2)
    if file.size <= room:
        return file
    logger.info(
        "decoded, %d images would take %s, more than the %s that are kept in %s: they are decoded "
        "in every epoch",
        *(count, _size(file.size), _size(room), folder),
    )
    return CacheFile(path=path, key=key, count=count, image_bytes=0)


def _key(listing: ImageListing, preprocessing: Preprocessing) -> str:
    geometry = {**preprocessing.to_dict(), "channels": preprocessing.channels}
    del geometry["mean"], geometry["std"]  # pixels are kept before they are normalised
    files = "\0".join(
        f"{name}\0{size} {content} {entry}"
        for name, (size, content, entry) in zip(listing.names, listing.states, strict=True)
    )
    head = json.dumps(geometry, sort_keys=True)
    return hashlib.sha256(os.fsencode(f"{head}\0{files}")).hexdigest()


def _made(file: CacheFile, listing: ImageListing, preprocessing: Preprocessing) -> Table:
    with _lock(file.path):  # while this waited another process may have made it
        return open_table(file) or _make(file, listing, preprocessing)


def _make(file: CacheFile, listing: ImageListing, preprocessing: Preprocessing) -> Table:
    if file.path.exists():
        logger.info("decoded images in %s are damaged or incomplete: made anew", file.path)
    _make_room(file.path.parent, file.size)
    with replacing(file.path) as part:
        _reserve(part, file.size)
        task = Task(preprocessing=None)
        if file.image_bytes:
            told = preprocessing.to_dict()
            task = Task(preprocessing=told, output=str(part), start=file.pixels_at)
        table = _decoded(listing, preprocessing, task)
        file.write_table(part, table)
    logger.info("decoded images are kept in %s (%s)", file.path, _size(file.size))
    return table


def _decoded(listing: ImageListing, preprocessing: Preprocessing, task: Task) -> Table:
    total_bytes = sum(size for size, _, _ in listing.states)
    found = decode_files(listing.paths, task, total_bytes=total_bytes)
    check_damage(listing.paths, found)
    height, width = preprocessing.size
    one_size = bool((found.sizes == (width, height)).all())
    return Table(sha256=found.sha256, crcs=found.crcs, one_size=one_size)


def _reserve(path: Path, size: int) -> None:
    """Take the room on the disk now, so that it cannot run out later."""
    try:
        with open(path, "r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as err:
        raise UserInputError(
            f"decoded images need {_size(size)} in {path.parent}, which cannot be had "
            f"({err.strerror}); give another folder with --cache, or --cache {OFF} to decode in "
            "every epoch"
        ) from err


def _usable_folder(cache: Path | str | None) -> Path | None:
    """Return the folder for decoded images, made; None where it is off or cannot be had."""
    if cache == OFF:
        return None
    folder = _default_folder() if cache is None else Path(cache).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = "it cannot be written to"
    except OSError as err:
        reason = err.strerror or str(err)
    if cache is not None:
        raise UserInputError(
            f"folder {folder} for decoded images cannot be used ({reason}); give another with "
            f"--cache, or --cache {OFF}"
        )
    logger.info("%s cannot be used (%s): images are decoded in every epoch", folder, reason)
    return None


def _default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "early-exit-compress" / "images"


def _make_room(folder: Path, needed: int) -> None:
    """Remove the files of ours that were not used for longest until the rest is small enough."""
    kept = []
    for path in folder.glob("*" + SUFFIX):
        with contextlib.suppress(OSError):  # another process removed it just now
            state = path.stat()
            kept.append((state.st_mtime_ns, state.st_size, path))
    total = needed + sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= MOST_KEPT:
            break
        if remove(path, is_ours=is_cache_file):
            total -= size


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes from making the same file; where locks are not to be had, do without.

    Two that write at once would both be right: each writes a file of its own and renames it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process decodes these images; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            logger.debug("%s cannot be locked", lock.name)
        yield


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"
