"""The augmentation that names stand for."""

from collections.abc import Sequence
from typing import Any

from compress.data.augment import AugmentConfig
from compress.errors import UserInputError
from compress.training.presets import AUGMENTATIONS

__all__ = ["augmentation"]


def augmentation(names: Sequence[str], image_size: int) -> AugmentConfig:
    """Return the settings that the names of `AUGMENTATIONS` stand for.

    Raises:
        UserInputError: a name is not one of them.
    """
    settings: dict[str, Any] = {}
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserInputError(
                f"augmentation {name!r} is not known; expected some of {', '.join(AUGMENTATIONS)}"
            )
        settings |= AUGMENTATIONS[name](image_size)
    return AugmentConfig(**settings)
