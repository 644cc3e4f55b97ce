"""Pictures as network inputs: decoded, resized, cut; or read from .npy files, prepared.

The recipe is Resize(resize_size) then CenterCrop(image_size), as published accuracies were
measured: same sizes, same filter, same rounding. The orientation tag of a photograph is
not applied, as it was not there. Training and the device both come here, so they see the same
pixels. Pillow of any version from 7.0 on does, which is the one that JetPack 5.1 has.

A machine without Pillow reads .npy files: pixels, (C, H, W) or (N, C, H, W) uint8 at their final
size, or prepared images, float32 and normalised.
"""

import inspect
import math
import os
import sys
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import (
    IO,
    Any,
    Callable,
    Iterable,
    Iterator,
    NamedTuple,
    NoReturn,
    Optional,
    Tuple,
    Union,
)

import numpy as np

from compress.errors import ToolchainError, UserInputError
from compress.optional import require
from compress.runtime.preprocessing import FILTERS, Preprocessing

__all__ = [
    "ARRAY_SUFFIX",
    "SUFFIXES",
    "DamagedPictureError",
    "Reading",
    "open_picture",
    "pillow",
    "prepare",
    "read_picture",
    "readings",
    "wanted_side",
    "with_channels",
]

# Every other format is refused before its reader runs: some start programs, as EPS does.
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ARRAY_SUFFIX = ".npy"
SUFFIXES = (
    *(".bmp", ".jpeg", ".jpg", ARRAY_SUFFIX, ".pbm", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)

# A decoded pixel takes four bytes, also where the file holds one bit for it. Several threads and
# processes decode at once, so a picture may take a quarter of a gigabyte and no more.
MOST_PIXELS = 1 << 26
MOST_BYTES = 1 << 29  # of a file; 64 million pixels without compression take less

MODES = {1: "L", 3: "RGB"}  # by channels

Picture = Any  # a PIL.Image.Image; Pillow is not imported here, nor need it be there


class DamagedPictureError(ValueError):
    """What is wrong with a picture, in a few words that fit into brackets."""


class Reading(NamedTuple):
    """One image that can be read.

    Attributes:
        name: path of its file; behind it "[i]" where the file holds several.
        read: returns the image, (C, H, W) float32 and normalised; UserInputError where it cannot.
    """

    name: str
    read: Callable[[], np.ndarray]


class _Header(NamedTuple):
    shape: Tuple[int, ...]
    dtype: np.dtype
    start: int  # bytes before the first element


def readings(
    paths: Iterable[Path], shape: Tuple[int, ...], preprocessing: Optional[Preprocessing]
) -> Iterator[Reading]:
    """Return the images of the files, in order; nothing is decoded before `Reading.read`.

    A file that is damaged is one reading, which raises when it is read.

    Args:
        paths: picture files and .npy files.
        shape: (C, H, W) that the network takes.
        preprocessing: of pictures; None where only prepared images are taken.

    Raises:
        UserInputError: there is a picture, but no preprocessing.
        ToolchainError: there is a picture, but no Pillow.
    """
    files = list(paths)
    pictures = [path for path in files if not _is_array(path)]
    if pictures and preprocessing is None:
        raise UserInputError(
            f"image {pictures[0]} is a picture, but the bundle does not say how to prepare one; "
            "give prepared images, float32 in .npy files"
        )
    if pictures:
        pillow()
    return chain.from_iterable(_readings(path, shape, preprocessing) for path in files)


def read_picture(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Return the picture in a file as uint8 of `preprocessing.shape`, (C, H, W).

    Raises:
        UserInputError: the file is gone, cannot be decoded, or does not fit; it is named.
        ToolchainError: Pillow is missing.
    """
    try:
        with open_picture(path, wanted=wanted_side(preprocessing)) as image:
            return prepare(with_channels(image, preprocessing.channels), preprocessing)
    except DamagedPictureError as err:
        raise UserInputError(
            f"image {path} cannot be decoded ({err}); replace or remove the file"
        ) from err


@contextmanager
def open_picture(
    file: Union[Path, IO[bytes]], *, wanted: Optional[int] = None
) -> Iterator[Picture]:
    """Give an opened picture of 8 bits a channel; it is decoded by what the block does with it.

    Args:
        file: its path or its content.
        wanted: the longer side that it will be resized to, pixels: a JPEG of more than
            `MOST_PIXELS` is then decoded at 1/2, 1/4 or 1/8 of its size. None wants it whole.

    Raises:
        DamagedPictureError: it cannot be opened, has too many pixels, or the block raised anything
            at all.
        ToolchainError: Pillow is missing.
    """
    image_module = pillow()
    try:
        with _opened(image_module, file) as image:
            _check_depth(image)
            _bound_pixels(image, wanted)
            yield image
    except Exception as err:  # decoders raise nearly anything on hostile bytes
        raise DamagedPictureError(_reason(err)) from err


def wanted_side(preprocessing: Preprocessing) -> Optional[int]:
    """Return what `open_picture` may make a picture smaller for; None where it is not resized."""
    return max(preprocessing.resized_size) if preprocessing.resize in FILTERS else None


def with_channels(image: Picture, channels: int) -> Picture:
    """Return the picture with so many channels: grey for one, RGB for three.

    Raises:
        ValueError: a picture cannot have so many, or this one has others. Bands that are no colours
            are not made up.
    """
    mode = MODES.get(channels)
    if mode is not None:
        return image if image.mode == mode else image.convert(mode)
    if len(image.getbands()) != channels:
        raise ValueError(
            f"it has {len(image.getbands())} channels, the network takes {channels}; images of "
            "other channels can be given as .npy files"
        )
    return image


def prepare(image: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """Resize a picture and cut out its centre, as `preprocessing` says.

    Args:
        image: with the channels of the input.
        preprocessing: what to do.

    Returns:
        (C, H, W) uint8.

    Raises:
        ValueError: the picture has not the size that is taken as it is, or is so long and thin that
            resizing would take unreasonable memory.
    """
    height, width = preprocessing.size
    if image.size != (width, height):
        _check_size(image.size, preprocessing)
    if image.size != (width, height) or not preprocessing.untouched_at_size:
        if preprocessing.resize in FILTERS:
            image = _resized(image, preprocessing)
        image = _centre(image, width, height)
    pixels = np.frombuffer(image.tobytes(), dtype=np.uint8)  # numpy.asarray takes twice as long
    return np.ascontiguousarray(pixels.reshape(height, width, -1).transpose(2, 0, 1))


def _check_size(received: Tuple[int, int], preprocessing: Preprocessing) -> None:
    """Raise ValueError where a picture that is not resized does not fit."""
    height, width = preprocessing.size
    too_small = received[0] < width or received[1] < height
    if preprocessing.resize == "none" or (preprocessing.resize == "crop" and too_small):
        least = "at least " if preprocessing.resize == "crop" else ""
        raise ValueError(
            f"it has {received[1]}x{received[0]} pixels, expected {least}{height}x{width}, as "
            "pictures are not resized for this network"
        )


def _resized(image: Picture, preprocessing: Preprocessing) -> Picture:
    """Return the picture resized until it just covers `resized_size`, in the published rounding."""
    (rows, columns), (width, height) = preprocessing.resized_size, image.size
    if width * rows <= height * columns:
        size = (columns, int(columns * height / width))
    else:
        size = (int(rows * width / height), rows)
    image_module = pillow()
    limit = image_module.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise ValueError(f"{width} x {height} would be resized to {size[0]} x {size[1]}")
    if image.size == size:
        return image
    filters = getattr(image_module, "Resampling", image_module)  # Pillow before 9.1 has none
    return image.resize(size, getattr(filters, FILTERS[preprocessing.resize].upper()))


def _centre(image: Picture, width: int, height: int) -> Picture:
    left, top = (round((whole - part) / 2) for whole, part in zip(image.size, (width, height)))
    return image.crop((left, top, left + width, top + height))


def pillow() -> ModuleType:
    """Return Pillow's module `PIL.Image`.

    Raises:
        ToolchainError: Pillow is missing.
    """
    loaded = sys.modules.get("PIL.Image")  # a million images ask for it
    if loaded is not None:
        return loaded
    try:
        return require("PIL.Image", "reading images")
    except ToolchainError as err:
        raise ToolchainError(
            f"Pillow is needed for reading images, but importing it failed ({err.__cause__}); "
            "install it with: pip install pillow, or give the images as .npy files"
        ) from err


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ARRAY_SUFFIX


def _readings(
    path: Path, shape: Tuple[int, ...], preprocessing: Optional[Preprocessing]
) -> Iterator[Reading]:
    if preprocessing is None or _is_array(path):
        return _array_readings(path, shape, preprocessing)
    return iter([Reading(str(path), partial(_read_normalized, path, preprocessing))])


def _read_normalized(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    return preprocessing.normalize_array(read_picture(path, preprocessing))


def _opened(image_module: ModuleType, file: Union[Path, IO[bytes]]) -> Picture:
    if isinstance(file, Path):
        _check_regular(file)
        _check_bytes(file.stat().st_size)
    if _takes_formats(image_module.open):
        return image_module.open(file, formats=FORMATS)
    image = image_module.open(file)  # Pillow before 8.0: the header is read, nothing is decoded yet
    if image.format not in (*FORMATS, "MPO"):  # which is a JPEG with a second one behind it
        image.close()
        raise ValueError(_unknown_format())
    return image


@lru_cache(maxsize=None)  # a signature costs as much as the header of a small picture
def _takes_formats(image_open: Callable[..., Picture]) -> bool:
    return "formats" in inspect.signature(image_open).parameters


def _check_bytes(held: int) -> None:
    if held > MOST_BYTES:
        raise ValueError(f"{held} bytes, expected at most {MOST_BYTES}")


def _bound_pixels(image: Picture, wanted: Optional[int]) -> None:
    """Refuse, by its header, what would take too much memory; have large JPEGs decoded smaller."""
    width, height = image.size
    if width * height <= MOST_PIXELS:
        return
    # Twice what is wanted leaves the resizing filter its work. A progressive JPEG is held whole
    # while it is decoded, however small it comes out.
    baseline = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    if wanted is not None and baseline:
        image.draft("RGB", (2 * wanted, 2 * wanted))
    if image.size[0] * image.size[1] > MOST_PIXELS:
        raise ValueError(
            f"{width} x {height} are {width * height // 10**6} million pixels, expected at most "
            f"{MOST_PIXELS // 10**6} million"
        )


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise ValueError("it is not a file")


def _check_depth(image: Picture) -> None:
    # Pillow clips deeper pixels to 0 … 255 without a word, which leaves a white picture.
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {image.mode}, expected 8 bits a channel")


def _reason(err: Exception) -> str:
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    if type(err).__name__ == "UnidentifiedImageError":  # its own text is a memory address
        return _unknown_format()
    return str(err) or type(err).__name__


def _unknown_format() -> str:
    return f"no image of the formats {', '.join(FORMATS)}"


def _array_readings(
    path: Path, shape: Tuple[int, ...], preprocessing: Optional[Preprocessing]
) -> Iterator[Reading]:
    """Yield the images of a .npy file, of which the header alone is read now."""
    try:
        header = _checked_header(path, shape, preprocessing)
    except UserInputError as err:
        yield Reading(str(path), partial(_raise, err))
        return
    several = len(header.shape) > len(shape)
    for place in range(header.shape[0] if several else 1):
        name = f"{path}[{place}]" if several else str(path)
        yield Reading(name, partial(_read_row, path, header, place, shape, preprocessing))


def _raise(err: UserInputError) -> NoReturn:
    raise err


def _checked_header(
    path: Path, shape: Tuple[int, ...], preprocessing: Optional[Preprocessing]
) -> _Header:
    try:
        _check_regular(path)
        header = _header(path)
    except Exception as err:  # a header is text of its own, parsed by numpy
        raise UserInputError(
            f"image {path} cannot be read ({_reason(err)}); expected a file that numpy.save wrote"
        ) from err
    kinds = ("float32",) if preprocessing is None else ("uint8", "float32")
    several = header.shape[1:] == shape and header.shape[0] > 0
    if str(header.dtype) not in kinds or not (header.shape == shape or several):
        sides = ", ".join(map(str, shape))
        raise UserInputError(
            f"image {path} holds {header.dtype} of shape {header.shape}; expected "
            f"{' or '.join(kinds)} of shape ({sides}) or (N, {sides})"
        )
    return header


def _header(path: Path) -> _Header:
    """Read the header of a .npy file; ValueError where the file does not hold what it says."""
    with open(str(path), "rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # the others are for headers that no image has
            raise ValueError(f"version {version} of the format, expected (1, 0)")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        start, held = file.tell(), os.fstat(file.fileno()).st_size
    if fortran_order:
        raise ValueError("in Fortran's order, expected numpy.ascontiguousarray")
    expected = start + dtype.itemsize * math.prod(shape)
    if held != expected:
        raise ValueError(f"{held} bytes, its header says {expected}")
    return _Header(shape, dtype, start)


def _read_row(
    path: Path,
    header: _Header,
    place: int,
    shape: Tuple[int, ...],
    preprocessing: Optional[Preprocessing],
) -> np.ndarray:
    size = header.dtype.itemsize * math.prod(shape)
    try:
        with open(str(path), "rb") as file:
            file.seek(header.start + place * size)
            content = file.read(size)
    except OSError as err:
        raise UserInputError(f"image {path} cannot be read ({_reason(err)})") from err
    if len(content) < size:
        raise UserInputError(f"image {path} was cut off while it was read; give it whole")
    image = np.frombuffer(content, dtype=header.dtype).reshape(shape)
    if image.dtype == np.uint8 and preprocessing is not None:
        return preprocessing.normalize_array(image)
    if not np.isfinite(image).all():
        raise UserInputError(
            f"image {place} of {path} holds values that are not finite; expected normalised ones"
        )
    return image
