"""Handwritten digits that come with scikit-learn: real data without a download.

1,797 images of 8x8 pixels with grey levels 0 … 16 (the test set of UCI's "Optical Recognition of
Handwritten Digits"), shown as grey RGB.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from compress.data.image_data import ImageData, Preprocessing, assemble
from compress.data.pictures import MemorySource, in_threads, prepare
from compress.data.splits import stratified_split
from compress.optional import require
from compress.runtime.pictures import with_channels

__all__ = ["load_digits"]

DEFAULT_SIZE = 32
SHARES = {"train": 50, "validation": 10, "calibration": 15, "test": 25}


def load_digits(
    *,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return the digits, split 50 / 10 / 15 / 25 % class by class.

    Args:
        image_size: side that the 8x8 images are resized to, pixels; 32 by default.
        preprocessing: how the images are prepared, in place of the default at `image_size`.
        seed: seed of the split.

    Raises:
        UserInputError: `image_size` is below 1.
        ToolchainError: scikit-learn or Pillow is missing.
    """
    if preprocessing is None:
        size = DEFAULT_SIZE if image_size is None else image_size
        preprocessing = Preprocessing.of_size(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    bunch = require("sklearn.datasets", "the digits").load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    positions = stratified_split(labels, SHARES, seed)
    return assemble(
        "digits",
        MemorySource(torch.from_numpy(_resized(grey, preprocessing))),
        classes=classes,
        labels=labels,
        positions=positions,
        preprocessing=preprocessing,
        seed=seed,
        content=[grey.tobytes()],
    )


def _resized(grey: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    pillow = require("PIL.Image", "resizing images")

    def resized(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = with_channels(pillow.fromarray(pixels), preprocessing.channels)
        return prepare(image, preprocessing)

    return np.stack(in_threads(resized, grey))
