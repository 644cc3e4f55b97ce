"""Pictures prepared with Pillow: decode, resize the shorter side, cut out the centre square.

The recipe is Resize(resize_size, bicubic) then CenterCrop(image_size), as published accuracies of
GFNet were measured: same sizes, same filter, same rounding. The orientation tag of a photograph is
not applied, as it was not there.
"""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.image_data import Preprocessing
from compress.errors import UserInputError
from compress.optional import require

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FileSource",
    "MemorySource",
    "ResizingSource",
    "damage_of",
    "in_threads",
    "prepare",
]

# Every other format is refused before its reader runs: some start programs, as EPS does.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")

Item = TypeVar("Item")
Result = TypeVar("Result")


class MemorySource:
    """Images that lie in memory at their final size, (N, 3, S, S) uint8."""

    lazy = False

    def __init__(self, images: Tensor) -> None:
        self.stored = images

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.stored.shape[-1]

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, 3, S, S)."""
        return self.stored[positions].contiguous()


class ResizingSource:
    """Square images in memory, (N, 3, H, H) uint8, that are resized when they are read."""

    lazy = True

    def __init__(self, images: Tensor, preprocessing: Preprocessing) -> None:
        self.stored = images
        self.preprocessing = preprocessing

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.preprocessing.image_size

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, 3, S, S)."""
        pixels = self.stored[positions].permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, H, 3)
        return _stack(in_threads(self._resize, pixels))

    def _resize(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return prepare(_pillow().fromarray(pixels), self.preprocessing)


class FileSource:
    """Image files that are decoded when they are read."""

    lazy = True

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.preprocessing.image_size

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, 3, S, S).

        Raises:
            UserInputError: a file is gone or cannot be decoded; it is named.
        """
        return _stack(in_threads(self._decode, [self.paths[place] for place in positions.tolist()]))

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        pillow = _pillow()
        try:
            with pillow.open(path, formats=FORMATS) as image:
                _check_depth(image)
                return prepare(image.convert("RGB"), self.preprocessing)
        except Exception as err:  # decoders raise nearly anything on hostile bytes
            raise UserInputError(
                f"image {path} cannot be decoded ({_reason(err)}); replace or remove the file"
            ) from err


def prepare(image: "Image.Image", preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize the shorter side and cut out the centre square of an RGB picture.

    Returns:
        (3, S, S), where S is `preprocessing.image_size`.

    Raises:
        ValueError: the picture is so long and thin that resizing would take unreasonable memory.
    """
    size, shorter = preprocessing.image_size, preprocessing.resize_size
    width, height = image.size
    if width <= height:
        resized = (shorter, int(shorter * height / width))
    else:
        resized = (int(shorter * width / height), shorter)
    limit = _pillow().MAX_IMAGE_PIXELS
    if limit is not None and resized[0] * resized[1] > limit:
        raise ValueError(f"{width} x {height} would be resized to {resized[0]} x {resized[1]}")
    if image.size != resized:
        image = image.resize(resized, _pillow().Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized)
    cut = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(cut, dtype=np.uint8).transpose(2, 0, 1))


def damage_of(content: bytes) -> str | None:
    """Say what is wrong with the bytes of an image file, or None when it can be decoded.

    PNG is checked by its checksums and JPEG decoded at an eighth of its size, which both find a
    truncated file for a fraction of what preparing it costs.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_depth(image)
            if image.format == "PNG":
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # does something to JPEG alone
                image.load()
    except Exception as err:  # decoders raise nearly anything on hostile bytes
        return _reason(err)
    return None


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return `work` of every item, in order, on up to four threads: Pillow lets go of the lock."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


def _check_depth(image: "Image.Image") -> None:
    # Pillow clips deeper pixels to 0 … 255 without a word, which leaves a white picture.
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {image.mode}, expected 8 bits a channel")


def _reason(err: Exception) -> str:
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    if type(err).__name__ == "UnidentifiedImageError":  # its own text is a memory address
        return f"no image of the formats {', '.join(FORMATS)}"
    return str(err) or type(err).__name__


def _stack(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))


def _pillow() -> ModuleType:
    return require("PIL.Image", "reading images")
