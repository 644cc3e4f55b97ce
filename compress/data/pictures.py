"""Where the images of a split come from: memory, memory and resized when read, or files.

How a picture is decoded and prepared stands in `compress.runtime.pictures`, which the device has
too.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.image_data import Preprocessing
from compress.errors import UserInputError
from compress.runtime.pictures import (
    pillow,
    prepare,
    read_picture,
    with_channels,
)
from compress.runtime.preprocessing import FILTERS, Side

__all__ = [
    "FileSource",
    "MemorySource",
    "ResizingSource",
    "array_source",
    "in_threads",
    "prepare",
    "prepare_array",
    "usual_preprocessing",
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
    """Images in memory or mapped, (N, H, W, C) uint8, that are prepared when they are read."""

    lazy = True

    def __init__(self, images: NDArray[np.uint8], preprocessing: Preprocessing) -> None:
        self.stored = images
        self.preprocessing = preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return self.preprocessing.shape

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, C, H, W)."""
        pixels = np.ascontiguousarray(self.stored[positions.numpy()])
        prepared = partial(prepare_array, preprocessing=self.preprocessing)
        return _stack(in_threads(prepared, pixels))


class FileSource:
    """Image files that are decoded when they are read."""

    lazy = True

    def __init__(self, paths: Sequence[str], preprocessing: Preprocessing) -> None:
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
        paths = [Path(self.paths[place]) for place in positions.tolist()]
        return _stack(in_threads(partial(read_picture, preprocessing=self.preprocessing), paths))


def usual_preprocessing(image_size: Side, *, channels: int = 3) -> Preprocessing:
    """Return what is done to images of which nothing is known but the size that is wanted.

    Those of that size stay as they are. Of others the shorter side is resized to 256/224 of it and
    the centre is cut out, as published accuracies of ImageNet are measured. Mean and standard
    deviation are ImageNet's for RGB, which published backbones were trained on, else 0.5.
    """
    rgb = channels == 3
    return Preprocessing(
        image_size=image_size,
        resize="pillow-bicubic",
        resize_size=256 * (image_size if isinstance(image_size, int) else min(image_size)) // 224,
        mean=(0.485, 0.456, 0.406) if rgb else (0.5,) * channels,
        std=(0.229, 0.224, 0.225) if rgb else (0.5,) * channels,
        untouched_at_size=True,
    )


def array_source(
    images: NDArray[np.uint8], preprocessing: Preprocessing
) -> MemorySource | ResizingSource:
    """Return the source of images (N, H, W, C) that lie in memory or are mapped.

    Raises:
        UserInputError: they have channels that the network does not take, or a size that the
            preprocessing refuses.
    """
    _, height, width, channels = images.shape
    if channels != preprocessing.channels and {channels, preprocessing.channels} != {1, 3}:
        raise UserInputError(
            f"the images have {channels} channels and the network takes {preprocessing.channels}; "
            "give images of as many, or mean and std for as many as the images have"
        )
    if (channels, height, width) == preprocessing.shape and _keeps_pixels(preprocessing):
        return MemorySource(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    try:
        prepare_array(images[0], preprocessing)
    except ValueError as err:
        raise UserInputError(f"the images do not fit the network: {err}") from err
    return ResizingSource(images, preprocessing)


def _keeps_pixels(preprocessing: Preprocessing) -> bool:
    """Say whether images of the network's size stay as they are."""
    resized = preprocessing.resize in FILTERS and not preprocessing.untouched_at_size
    return not resized or preprocessing.resize_size == min(preprocessing.size)


def prepare_array(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return an image (H, W, C) as the network takes it, (C, H, W) uint8.

    Raises:
        ValueError: see `prepare`.
    """
    channels = preprocessing.channels
    if channels in (1, 3):
        picture = pillow().fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return prepare(with_channels(picture, channels), preprocessing)
    # Pillow has no pictures of other channels; each is resized for itself, as those of RGB are.
    one = replace(preprocessing, mean=(0.0,), std=(1.0,))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.concatenate([prepare(pillow().fromarray(plane), one) for plane in planes])


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return `work` of every item, in order, on up to four threads: Pillow lets go of the lock."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


def _stack(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))
