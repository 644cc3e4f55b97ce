"""A few images to look at a network with: pictures of a data set, or noise."""

import torch
from torch import Tensor

from compress.data.image_data import ImageData
from compress.errors import UserInputError

__all__ = ["noise", "pictures"]

CALIBRATION = "calibration"


def pictures(data: ImageData, *, count: int) -> tuple[Tensor, str]:
    """Return the first images of the calibration split, (N, C, H, W) normalised, and their name.

    Raises:
        UserInputError: the split is empty.
    """
    split = data.splits[CALIBRATION]
    if len(split) == 0:
        raise UserInputError(
            f"the {CALIBRATION} split of {data.name} is empty; expected at least one image"
        )
    first = split.images(torch.arange(min(count, len(split))))
    return data.normalize(first), f"{len(first)} {CALIBRATION} images of {data.name}"


def noise(shape: tuple[int, int, int], *, count: int, seed: int = 0) -> tuple[Tensor, str]:
    """Return normal noise (N, C, H, W) and its name."""
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return images, f"{count} images of noise (seed {seed})"
