"""CIFAR-10 as its publisher ships it: binary or python distribution, unpacked or as tarball.

Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 60,000 colour images
of 32x32 in ten classes. The official test batch is the test split; the 50,000 training images are
divided 80 / 10 / 10 into train, validation and calibration, class by class.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from compress.data.image_data import ImageData, ImageSource, Preprocessing, assemble
from compress.data.pictures import MemorySource, ResizingSource
from compress.data.plain_pickle import PickledArray, load_plain_pickle
from compress.data.splits import stratified_split
from compress.errors import UserInputError

__all__ = ["load_cifar10"]

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the 50,000 training images
SIDE = 32
PIXELS = 3 * SIDE * SIDE
RECORDS = 10_000  # in every file of either distribution
MEMBER_LIMIT = 1 << 26  # bytes; twice what the largest official file has
SHARES = {"train": 8, "validation": 1, "calibration": 1}
CLASSES: tuple[str, ...] = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (R, 3072) and (R,)


@dataclass(frozen=True, kw_only=True)
class _Distribution:
    folder: str
    archive: str
    batches: tuple[str, ...]  # the test batch last
    meta: str
    read_batch: Callable[[bytes, str], Batch]
    read_names: Callable[[bytes, str], tuple[str, ...]]


def load_cifar10(
    folder: Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return CIFAR-10 from a folder that holds either distribution.

    Unpacked files are looked for in `folder` and in the folder that the tarball unpacks to; failing
    that, the tarball is read where it lies, and nothing is written.

    Args:
        folder: where the distribution lies.
        image_size: side, pixels; 32 by default, other sizes are resized as they are read.
        preprocessing: how the images are prepared, in place of the default at `image_size`.
        seed: seed of the split of the training images.

    Raises:
        UserInputError: the folder holds no whole distribution, or a file is damaged.
    """
    if preprocessing is None:
        preprocessing = Preprocessing.of_size(SIDE if image_size is None else image_size, MEAN, STD)
    images, labels, classes = _read(folder)
    positions = stratified_split(labels[: 5 * RECORDS], SHARES, seed)
    positions["test"] = np.arange(5 * RECORDS, 6 * RECORDS, dtype=np.int64)
    return assemble(
        "cifar10",
        _source(torch.from_numpy(images), preprocessing),
        classes=classes,
        labels=labels,
        positions=positions,
        preprocessing=preprocessing,
        seed=seed,
        content=[images.reshape(-1).data],
    )


def _source(images: torch.Tensor, preprocessing: Preprocessing) -> ImageSource:
    if preprocessing.shape == (3, SIDE, SIDE) and preprocessing.resize_size == SIDE:
        return MemorySource(images)
    return ResizingSource(images, preprocessing)


def _read(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Return images (60000, 3, 32, 32), labels (60000,) with the test batch last, and names."""
    distribution, files = _find(folder)
    images = np.empty((6, RECORDS, PIXELS), dtype=np.uint8)
    labels = np.empty((6, RECORDS), dtype=np.int64)
    classes = CLASSES
    seen = set()
    for name, content in files:
        what = f"CIFAR-10 file {name} in {folder}"
        if name == distribution.meta:
            classes = _checked_names(distribution.read_names(content, what), what)
        else:
            place = distribution.batches.index(name)
            images[place], labels[place] = _checked(distribution.read_batch(content, what), what)
            seen.add(name)
    missing = [name for name in distribution.batches if name not in seen]
    if missing:
        raise UserInputError(
            f"{folder} has no {', '.join(missing)}; expected all six batches of CIFAR-10, so "
            f"unpack {distribution.archive} again"
        )
    return images.reshape(-1, 3, SIDE, SIDE), labels.reshape(-1), classes


def _find(folder: Path) -> tuple[_Distribution, Iterator[tuple[str, bytes]]]:
    if not folder.is_dir():
        raise UserInputError(f"data folder {folder} does not exist or is no folder; check the path")
    for distribution in _DISTRIBUTIONS:
        for place in (folder, folder / distribution.folder):
            if any((place / name).is_file() for name in distribution.batches):
                return distribution, _loose_files(place, distribution)
    for distribution in _DISTRIBUTIONS:
        if (folder / distribution.archive).is_file():
            return distribution, _members(folder / distribution.archive, distribution)
    raise UserInputError(
        f"{folder} holds no CIFAR-10; expected data_batch_1.bin … or data_batch_1 …, or "
        + " or ".join(distribution.archive for distribution in _DISTRIBUTIONS)
    )


def _loose_files(folder: Path, distribution: _Distribution) -> Iterator[tuple[str, bytes]]:
    for name in (*distribution.batches, distribution.meta):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MEMBER_LIMIT:
                raise UserInputError(_too_large(str(path), path.stat().st_size))
            yield name, path.read_bytes()


def _members(archive: Path, distribution: _Distribution) -> Iterator[tuple[str, bytes]]:
    """Read the wanted files in one pass over a tarball, in memory: nothing is unpacked."""
    wanted = {*distribution.batches, distribution.meta}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name not in wanted or not member.isfile():
                    continue
                if member.size > MEMBER_LIMIT:
                    raise UserInputError(_too_large(f"{name} in {archive}", member.size))
                file = tar.extractfile(member)
                if file is not None:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as err:
        raise UserInputError(
            f"{archive} cannot be read as a gzipped tarball ({err}); fetch it again"
        ) from err


def _too_large(what: str, size: int) -> str:
    return f"{what} has {size} bytes; expected a file of CIFAR-10, at most {MEMBER_LIMIT} bytes"


def _binary_batch(content: bytes, what: str) -> Batch:
    expected = RECORDS * (1 + PIXELS)
    if len(content) != expected:
        raise UserInputError(
            f"{what} has {len(content)} bytes; expected {expected}, which is {RECORDS} records of "
            "one label and 3072 pixel values; fetch it again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(RECORDS, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _python_batch(content: bytes, what: str) -> Batch:
    fields = _fields(content, what)
    data, labels = fields.get("data"), fields.get("labels")
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        raise UserInputError(
            f"{what} holds {sorted(fields)}; expected an array under 'data' and a list under "
            "'labels'; fetch it again"
        )
    shape = data.values.shape
    if shape != (RECORDS, PIXELS) or len(labels) != RECORDS:
        raise UserInputError(
            f"{what} has data of shape {shape} and {len(labels)} labels; expected "
            f"({RECORDS}, {PIXELS}) and {RECORDS}; fetch it again"
        )
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise UserInputError(f"{what} has labels that are not whole numbers from 0 to 9")
    return data.values, np.array(labels, dtype=np.int64)


def _fields(content: bytes, what: str) -> dict[str, object]:
    value = load_plain_pickle(content, what)
    if not isinstance(value, dict):
        raise UserInputError(f"{what} holds a {type(value).__name__}; expected a dict of CIFAR-10")
    return {_text(key): part for key, part in value.items()}


def _checked(batch: Batch, what: str) -> Batch:
    highest = int(batch[1].max())
    if highest >= len(CLASSES):
        raise UserInputError(
            f"{what} has the label {highest}; expected labels from 0 to 9, so it is damaged or not "
            "CIFAR-10; fetch it again"
        )
    return batch


def _names_from_text(content: bytes, what: str) -> tuple[str, ...]:
    return tuple(content.decode("utf-8", "replace").split())


def _names_from_pickle(content: bytes, what: str) -> tuple[str, ...]:
    names = _fields(content, what).get("label_names")
    return tuple(map(_text, names)) if isinstance(names, list) else ()


def _checked_names(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    if len(set(names)) != len(CLASSES):
        raise UserInputError(
            f"{what} names {len(set(names))} classes; expected {len(CLASSES)}; fetch it again or "
            "remove it"
        )
    return names


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
_DISTRIBUTIONS = (
    _Distribution(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        batches=(*(f"{name}.bin" for name in _TRAINING), "test_batch.bin"),
        meta="batches.meta.txt",
        read_batch=_binary_batch,
        read_names=_names_from_text,
    ),
    _Distribution(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        batches=(*_TRAINING, "test_batch"),
        meta="batches.meta",
        read_batch=_python_batch,
        read_names=_names_from_pickle,
    ),
)
