"""Where the images of a split come from: memory, memory and resized when read, or files.

How a picture is decoded and prepared stands in `compress.runtime.pictures`, which the device has
too.
"""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.image_data import Preprocessing
from compress.runtime.pictures import (
    DamagedPictureError,
    open_picture,
    pillow,
    prepare,
    read_picture,
)

__all__ = [
    "FileSource",
    "MemorySource",
    "ResizingSource",
    "damage_of",
    "in_threads",
    "prepare",
]

Item = TypeVar("Item")
Result = TypeVar("Result")


class MemorySource:
    """Images that lie in memory at their final size, (N, C, H, W) uint8."""

    lazy = False

    def __init__(self, images: Tensor) -> None:
        self.stored = images

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        channels, height, width = self.stored.shape[1:]
        return channels, height, width

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, C, H, W)."""
        return self.stored[positions].contiguous()


class ResizingSource:
    """Square images in memory, (N, 3, H, H) uint8, that are resized when they are read."""

    lazy = True

    def __init__(self, images: Tensor, preprocessing: Preprocessing) -> None:
        self.stored = images
        self.preprocessing = preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return self.preprocessing.shape

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, C, H, W)."""
        pixels = self.stored[positions].permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, H, 3)
        return _stack(in_threads(self._resize, pixels))

    def _resize(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return prepare(pillow().fromarray(pixels), self.preprocessing)


class FileSource:
    """Image files that are decoded when they are read."""

    lazy = True

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return self.preprocessing.shape

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, C, H, W).

        Raises:
            UserInputError: a file is gone or cannot be decoded; it is named.
        """
        paths = [self.paths[place] for place in positions.tolist()]
        return _stack(in_threads(partial(read_picture, preprocessing=self.preprocessing), paths))


def damage_of(content: bytes) -> str | None:
    """Say what is wrong with the bytes of an image file, or None when it can be decoded.

    PNG is checked by its checksums and JPEG decoded at an eighth of its size, which both find a
    truncated file for a fraction of what preparing it costs.
    """
    try:
        with open_picture(io.BytesIO(content)) as image:
            if image.format == "PNG":
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # does something to JPEG alone
                image.load()
    except DamagedPictureError as err:
        return str(err)
    return None


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return `work` of every item, in order, on up to four threads: Pillow lets go of the lock."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


def _stack(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))
