"""What every data set looks like: four splits of uint8 images of one size.

Images stay uint8 until the last moment: a quarter of the memory of float32, and the same bytes for
training, measuring and exporting. `Preprocessing` says how they came to be, and travels with
checkpoints so that a later step prepares its images in the same way.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.splits import SPLITS
from compress.errors import UserInputError
from compress.runtime import preprocessing

__all__ = ["ImageData", "ImageSource", "Preprocessing", "Split", "assemble"]


@dataclass(frozen=True)
class Preprocessing(preprocessing.Preprocessing):
    """How a picture becomes a network input, with torch's part of it."""

    def normalize(self, images: Tensor) -> Tensor:
        """Return float32 inputs of uint8 images, (B, C, H, W), on the same device."""
        return self.standardize(images.float() / 255)

    def standardize(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std of float images in [0, 1], (B, C, H, W)."""
        mean = torch.tensor(self.mean, device=images.device, dtype=images.dtype)
        std = torch.tensor(self.std, device=images.device, dtype=images.dtype)
        return (images - mean[:, None, None]) / std[:, None, None]


class ImageSource(Protocol):
    """Where the images of a split come from."""

    @property
    def lazy(self) -> bool:
        """Whether reading costs enough to be worth doing ahead."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""

    def read(self, positions: Tensor) -> Tensor:
        """Return the uint8 images at `positions` (B,), as (B, C, H, W)."""


class Split:
    """One of train, validation, calibration, test: images of a source, and their labels.

    Attributes:
        labels: (N,) int64.
        positions: (N,) int64, where each image lies in the source.
    """

    def __init__(self, source: ImageSource, positions: Tensor, labels: Tensor) -> None:
        self.source = source
        self.positions = positions
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return the uint8 images at `indices` (B,) of this split, as (B, C, H, W).

        Raises:
            UserInputError: an image file cannot be decoded.
        """
        if len(indices) == 0:
            return torch.empty(0, *self.source.shape, dtype=torch.uint8)
        return self.source.read(self.positions[indices.cpu()])

    def batches(
        self, batch_size: int, *, order: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images (B, C, H, W) and labels (B,); the last batch may be smaller.

        While one batch is worked on, the next is decoded in a thread if that takes time at all.

        Args:
            batch_size: images in a batch, at least 1.
            order: the indices to visit, (M,); by default 0 … N-1.

        Raises:
            UserInputError: `batch_size` is below 1, or an image file cannot be decoded.
        """
        if batch_size < 1:
            raise UserInputError(f"--batch-size is {batch_size}; expected at least 1")
        indices = torch.arange(len(self)) if order is None else order.cpu()
        steps = indices.split(batch_size) if len(indices) else ()
        return self._ahead(steps) if self.source.lazy else self._at_once(steps)

    def _at_once(self, steps: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for step in steps:
            yield self.images(step), self.labels[step]

    def _ahead(self, steps: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as reader:
            waiting = None
            for step in steps:
                coming = reader.submit(self.images, step), self.labels[step]
                if waiting is not None:
                    yield waiting[0].result(), waiting[1]
                waiting = coming
            if waiting is not None:
                yield waiting[0].result(), waiting[1]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A labelled data set.

    Attributes:
        name: what kind it is, such as "digits".
        classes: the name of each label.
        splits: under "train", "validation", "calibration" and "test".
        preprocessing: how the images were prepared, and how to normalise them.
        sha256: identity of the content, the classes, the split, the seed and the preprocessing.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    preprocessing: Preprocessing
    sha256: str

    def normalize(self, images: Tensor) -> Tensor:
        """Return float32 inputs of uint8 images, (B, C, H, W), on the same device."""
        return self.preprocessing.normalize(images)


def assemble(
    name: str,
    source: ImageSource,
    *,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    positions: Mapping[str, NDArray[np.int64]],
    preprocessing: Preprocessing,
    seed: int,
    content: Iterable[bytes | memoryview],
) -> ImageData:
    """Return the data set made of a source and its split.

    Args:
        name: the kind of data.
        source: gives the images.
        classes: the class names in the order of the labels.
        labels: (N,), of all images of the source.
        positions: per split which images of the source it holds.
        preprocessing: how the source prepares images.
        seed: the seed of the split.
        content: the bytes of all images before they were prepared, or their digests, in the
            order of the source. With everything else they make up the identity.
    """
    head = {
        "name": name,
        "classes": classes,
        "preprocessing": preprocessing.to_dict(),
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for part in _parts_of_identity(labels, positions, content):
        # Digests are of equal length, so that no two lists of parts run together to the same bytes.
        digest.update(hashlib.sha256(part).digest())
    return ImageData(
        name=name,
        classes=classes,
        splits={
            split: Split(source, torch.from_numpy(part), torch.from_numpy(labels[part]))
            for split, part in positions.items()
        },
        preprocessing=preprocessing,
        sha256=digest.hexdigest(),
    )


def _parts_of_identity(
    labels: NDArray[np.int64],
    positions: Mapping[str, NDArray[np.int64]],
    content: Iterable[bytes | memoryview],
) -> Iterator[bytes | memoryview]:
    for numbers in (labels, *(positions[split] for split in SPLITS)):
        yield numbers.astype("<i8").tobytes()  # the same on every machine
    yield from content
