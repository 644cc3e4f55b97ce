"""Handwritten digits that come with scikit-learn: real data without a download.

1,797 images of 8x8 pixels with grey levels 0 … 16 (the test set of UCI's "Optical Recognition of
Handwritten Digits"), shown as grey RGB.
"""

import numpy as np
import torch

from compress.data.image_data import ImageData, Preprocessing, assemble
from compress.data.pictures import MemorySource, array_source
from compress.data.splits import stratified_split
from compress.optional import require
from compress.runtime.preprocessing import Side

__all__ = ["load_digits"]

DEFAULT_SIZE = 32
SHARES = {"train": 50, "validation": 10, "calibration": 15, "test": 25}


def load_digits(
    *,
    image_size: Side | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> ImageData:
    """Return the digits, split 50 / 10 / 15 / 25 % class by class.

    Args:
        image_size: side, or height and width, that the 8x8 images are resized to, pixels; 32 by
            default.
        preprocessing: how images are prepared; takes the place of `image_size`.
        seed: seed of the split.

    Raises:
        UserInputError: `image_size` is below 1.
        ToolchainError: scikit-learn or Pillow is missing.
    """
    preprocessing = preprocessing or _preprocessing(image_size)
    bunch = require("sklearn.datasets", "the digits").load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    labels = bunch.target.astype(np.int64)
    source = array_source(grey[:, :, :, None], preprocessing)
    return assemble(
        "digits",
        MemorySource(source.read(torch.arange(len(labels)))),
        classes=tuple(str(name) for name in bunch.target_names),
        labels=labels,
        positions=stratified_split(labels, SHARES, seed),
        preprocessing=preprocessing,
        seed=seed,
        content=[grey.tobytes()],
    )


def _preprocessing(image_size: Side | None) -> Preprocessing:
    side = DEFAULT_SIZE if image_size is None else image_size
    return Preprocessing.of_size(side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
