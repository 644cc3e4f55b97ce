"""How a picture becomes a network input, as data that travel with checkpoints and bundles."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Tuple, Type, TypeVar

import numpy as np

from compress.errors import UserInputError

__all__ = ["Preprocessing"]

RESIZES = ("pillow-bicubic",)
RGB = Tuple[float, float, float]
Self = TypeVar("Self", bound="Preprocessing")  # typing has one from 3.11 on


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network input.

    The shorter side is resized to `resize_size`, the centre square of `image_size` is cut out, and
    each channel is normalised as (value / 255 - mean) / std.

    Attributes:
        image_size: side of the square input, pixels.
        resize: "pillow-bicubic", Pillow's antialiased filter. `torch.nn.functional.interpolate` is
            no substitute: it differs by several grey levels.
        resize_size: length of the shorter side before the crop; `image_size` when nothing is cut.
        mean: per channel R, G, B, of values in [0, 1].
        std: per channel R, G, B, of values in [0, 1], above 0.
    """

    image_size: int
    resize: str
    resize_size: int
    mean: RGB
    std: RGB

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserInputError(f"image size is {self.image_size}; expected at least 1 pixel")
        if self.resize_size < self.image_size:
            raise UserInputError(
                f"resize size is {self.resize_size}; expected at least the image size "
                f"{self.image_size}, which is cut out of the resized picture"
            )
        if self.resize not in RESIZES:
            raise UserInputError(f"resize is {self.resize!r}; expected one of {', '.join(RESIZES)}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(std > 0 for std in self.std):
            raise UserInputError(
                f"mean is {self.mean} and std is {self.std}; expected three numbers each, with std "
                "above 0"
            )

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls: Type[Self], value: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave.

        Raises:
            UserInputError: a field is missing, unknown, or out of range.
        """
        names = {field.name for field in fields(cls)}
        if set(value) != names:
            raise UserInputError(
                f"preprocessing has the fields {sorted(value)}; expected {sorted(names)}"
            )
        try:
            return cls(
                image_size=int(value["image_size"]),
                resize=str(value["resize"]),
                resize_size=int(value["resize_size"]),
                mean=tuple(map(float, value["mean"])),  # type: ignore[arg-type]  # length checked
                std=tuple(map(float, value["std"])),  # type: ignore[arg-type]  # length checked
            )
        except (TypeError, ValueError) as err:
            raise UserInputError(
                f"preprocessing is {dict(value)}; expected numbers for sizes, mean and std ({err})"
            ) from err

    def normalize_array(self, images: np.ndarray) -> np.ndarray:
        """Return float32 inputs of uint8 images, (…, 3, S, S): the very values that torch gets."""
        mean, std = (
            np.array(rgb, dtype=np.float32)[:, None, None] for rgb in (self.mean, self.std)
        )
        scaled = images.astype(np.float32) / np.float32(255)
        normalized: np.ndarray = (scaled - mean) / std
        return normalized
