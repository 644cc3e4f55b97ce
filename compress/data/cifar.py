"""CIFAR-10 and CIFAR-100 as their publisher ships them: binary or python, unpacked or as tarball.

Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 60,000 colour images
of 32x32, in ten classes or in a hundred (the fine labels). The official test batch is the test
split; the 50,000 training images are divided 80 / 10 / 10 into train, validation and calibration,
class by class.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.archives import archive_files
from compress.data.cifar_batches import (
    PIXELS,
    BatchForm,
    binary_batch,
    names_from_pickle,
    names_from_text,
    python_batch,
)
from compress.data.class_folders import holds_class_folders
from compress.data.image_data import ImageData, Preprocessing, assemble
from compress.data.pictures import array_source
from compress.data.splits import shares_of_train, stratified_split
from compress.errors import UserInputError
from compress.runtime.preprocessing import Side

__all__ = ["load_cifar10", "load_cifar100"]

SIDE = 32
LIMIT = 1 << 28  # bytes that an archive unpacks to; the official ones have 186 million

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class _Distribution:
    folder: str
    archive: str
    suffix: str  # of the batches
    names: str  # the file of class names
    read_batch: Callable[[bytes, int, BatchForm, str], Batch]
    read_names: Callable[[bytes, BatchForm, str], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class _Cifar:
    kind: str
    form: BatchForm
    records: dict[str, int]  # of each batch, the test batch last
    distributions: tuple[_Distribution, ...]
    classes: tuple[str, ...]  # where the file of names is not there; empty where it must be
    mean: tuple[float, float, float]  # of the 50,000 training images
    std: tuple[float, float, float]

    def batches(self, distribution: _Distribution) -> dict[str, int]:
        return {stem + distribution.suffix: count for stem, count in self.records.items()}


@dataclass(frozen=True, kw_only=True)
class _Images:
    pixels: NDArray[np.uint8]  # (60000, 3, 32, 32), the test batch last
    labels: NDArray[np.int64]  # (60000,)
    classes: tuple[str, ...]


def load_cifar10(
    folder: Path,
    *,
    image_size: Side | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return CIFAR-10 from a folder that holds either distribution.

    Unpacked files are looked for in `folder` and in the folder that the tarball unpacks to; failing
    that, the tarball is read where it lies, and nothing is written.

    Args:
        folder: where the distribution lies.
        image_size: side, or height and width, pixels; 32 by default, other sizes are resized as
            they are read.
        preprocessing: how images are prepared; takes the place of `image_size`.
        seed: seed of the split of the training images.

    Raises:
        UserInputError: the folder holds no whole distribution, or a file is damaged.
    """
    return _load(CIFAR10, folder, preprocessing or _preprocessing(CIFAR10, image_size), seed)


def load_cifar100(
    folder: Path,
    *,
    image_size: Side | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return CIFAR-100 with its hundred fine labels; all else is as for `load_cifar10`.

    Raises:
        UserInputError: the folder holds no whole distribution, or a file is damaged.
    """
    return _load(CIFAR100, folder, preprocessing or _preprocessing(CIFAR100, image_size), seed)


def _load(cifar: _Cifar, folder: Path, preprocessing: Preprocessing, seed: int) -> ImageData:
    read = _read(cifar, folder)
    total, testing = len(read.labels), list(cifar.records.values())[-1]
    positions = stratified_split(
        read.labels[: total - testing], shares_of_train({"train", "test"}), seed
    )
    positions["test"] = np.arange(total - testing, total, dtype=np.int64)
    return assemble(
        cifar.kind,
        array_source(read.pixels.transpose(0, 2, 3, 1), preprocessing),
        classes=read.classes,
        labels=read.labels,
        positions=positions,
        preprocessing=preprocessing,
        seed=seed,
        content=[read.pixels.reshape(-1).data],
    )


def _preprocessing(cifar: _Cifar, image_size: Side | None) -> Preprocessing:
    side = SIDE if image_size is None else image_size
    return Preprocessing.of_size(side, mean=cifar.mean, std=cifar.std)


def _read(cifar: _Cifar, folder: Path) -> _Images:
    distribution, files = _find(cifar, folder)
    batches = cifar.batches(distribution)
    ends = dict(zip(batches, np.cumsum(list(batches.values())).tolist(), strict=True))
    total = sum(batches.values())
    pixels = np.empty((total, PIXELS), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    classes, seen = cifar.classes, set()
    for name, content in files:
        what = f"{cifar.form.data_set} file {name} in {folder}"
        seen.add(name)
        if name == distribution.names:
            classes = distribution.read_names(content, cifar.form, what)
        else:
            rows = slice(ends[name] - batches[name], ends[name])
            read = distribution.read_batch(content, batches[name], cifar.form, what)
            pixels[rows], labels[rows] = read
    needed = [*batches] if cifar.classes else [*batches, distribution.names]
    missing = [name for name in needed if name not in seen]
    if missing:
        raise UserInputError(
            f"{folder} has no {', '.join(missing)}; expected all {len(batches)} batches of "
            f"{cifar.form.data_set}, so unpack {distribution.archive} again"
        )
    return _Images(pixels=pixels.reshape(-1, 3, SIDE, SIDE), labels=labels, classes=classes)


def _find(cifar: _Cifar, folder: Path) -> tuple[_Distribution, Iterator[tuple[str, bytes]]]:
    if not folder.is_dir():
        raise UserInputError(f"data folder {folder} does not exist or is no folder; check the path")
    for distribution in cifar.distributions:
        for place in (folder, folder / distribution.folder):
            if any((place / name).is_file() for name in cifar.batches(distribution)):
                return distribution, _loose_files(cifar, place, distribution)
    for distribution in cifar.distributions:
        if (folder / distribution.archive).is_file():
            wanted = {*cifar.batches(distribution), distribution.names}
            archive = folder / distribution.archive
            return distribution, archive_files(archive, wanted, limit=LIMIT)
    raise UserInputError(_nothing_found(cifar, folder))


def _nothing_found(cifar: _Cifar, folder: Path) -> str:
    archives = " or ".join(distribution.archive for distribution in cifar.distributions)
    firsts = " or ".join(next(iter(cifar.batches(each))) for each in cifar.distributions)
    way_out = ""
    if holds_class_folders(folder):
        way_out = f"; it holds images in folders, which --data folder:{folder} reads"
    return (
        f"{folder} holds no {cifar.form.data_set} as its publisher ships it; expected {firsts} and "
        f"the other batches, or {archives}{way_out}"
    )


def _loose_files(
    cifar: _Cifar, folder: Path, distribution: _Distribution
) -> Iterator[tuple[str, bytes]]:
    for name in (*cifar.batches(distribution), distribution.names):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > LIMIT:
                raise UserInputError(
                    f"{path} has {path.stat().st_size} bytes; expected a file of "
                    f"{cifar.form.data_set}, at most {LIMIT} bytes"
                )
            yield name, path.read_bytes()


CIFAR10 = _Cifar(
    kind="cifar10",
    form=BatchForm(
        data_set="CIFAR-10",
        classes=10,
        label_bytes=1,
        labels_key="labels",
        names_key="label_names",
    ),
    records={**{f"data_batch_{number}": 10_000 for number in range(1, 6)}, "test_batch": 10_000},
    distributions=(
        _Distribution(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            suffix=".bin",
            names="batches.meta.txt",
            read_batch=binary_batch,
            read_names=names_from_text,
        ),
        _Distribution(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            suffix="",
            names="batches.meta",
            read_batch=python_batch,
            read_names=names_from_pickle,
        ),
    ),
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = _Cifar(
    kind="cifar100",
    form=BatchForm(
        data_set="CIFAR-100",
        classes=100,
        label_bytes=2,
        labels_key="fine_labels",
        names_key="fine_label_names",
    ),
    records={"train": 50_000, "test": 10_000},
    distributions=(
        _Distribution(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            suffix=".bin",
            names="fine_label_names.txt",
            read_batch=binary_batch,
            read_names=names_from_text,
        ),
        _Distribution(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            suffix="",
            names="meta",
            read_batch=python_batch,
            read_names=names_from_pickle,
        ),
    ),
    classes=(),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
