"""Data that have some of the four splits alone, such as a folder with test images and no others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from compress.data.image_data import ImageData, Split
from compress.errors import UserInputError

__all__ = ["only_given"]


def only_given(data: ImageData, what: str) -> ImageData:
    """Return the data without splits that hold no image.

    Args:
        data: with all four.
        what: names the data in the message for who asks for a split that is not there.
    """
    kept = {name: split for name, split in data.splits.items() if len(split)}
    return replace(data, splits=_GivenSplits(kept, what))


class _GivenSplits(dict[str, Split]):
    """The splits that are there; asking for another is told, instead of a KeyError."""

    def __init__(self, splits: Mapping[str, Split], what: str) -> None:
        super().__init__(splits)
        self.what = what

    def __missing__(self, split: str) -> NoReturn:
        raise UserInputError(
            f"{self.what} has {' and '.join(self)} images alone, and {split} images are needed; "
            "add training images, which the missing splits are taken out of"
        )
