"""How a picture becomes a network input, as data that travel with checkpoints and bundles."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Tuple, Type, TypeVar, Union

import numpy as np

from compress.errors import UserInputError

__all__ = ["FILTERS", "LARGEST_SIDE", "RESIZES", "Preprocessing"]

LARGEST_SIDE = 1 << 14  # pixels; a larger one is a damaged file, not a network
MOST_CHANNELS = 1 << 10
FILTERS = {"pillow-bicubic": "bicubic", "pillow-bilinear": "bilinear"}
RESIZES = (*FILTERS, "crop", "none")
OPTIONAL = {"untouched_at_size"}  # files that were written before it was there mean False
Side = Union[int, Tuple[int, int]]
Self = TypeVar("Self", bound="Preprocessing")  # typing has one from 3.11 on


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network input.

    The picture is resized, keeping its proportions, until it just covers the input's size scaled
    so that its shorter side is `resize_size`; the centre of the input's size is cut out, and each
    channel is normalised as (value / 255 - mean) / std. For a square input that is the published
    "resize the shorter side, cut out the centre".

    Attributes:
        image_size: side of a square input, pixels, or (height, width).
        resize: "pillow-bicubic" or "pillow-bilinear", Pillow's antialiased filters
            (`torch.nn.functional.interpolate` is no substitute: it differs by several grey levels);
            "crop" cuts out the centre without resizing; "none" takes pictures of that size alone.
        resize_size: length of the shorter side before the crop; the input's own shorter side when
            nothing is cut.
        mean: per channel, of values in [0, 1]; R, G, B for three of them. Their number is that of
            the input's channels.
        std: per channel, of values in [0, 1], above 0.
        untouched_at_size: whether a picture that has the input's size already is neither resized
            nor cut.
    """

    image_size: Side
    resize: str
    resize_size: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    untouched_at_size: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _side(self.image_size))
        shorter = min(self.size)
        if not 1 <= shorter <= max(self.size) <= LARGEST_SIDE:
            raise UserInputError(
                f"image size is {self.image_size}; expected at least 1 and at most {LARGEST_SIDE} "
                "pixels a side"
            )
        if self.resize not in RESIZES:
            raise UserInputError(f"resize is {self.resize!r}; expected one of {', '.join(RESIZES)}")
        if not shorter <= self.resize_size <= LARGEST_SIDE:
            raise UserInputError(
                f"resize size is {self.resize_size}; expected at least the image size "
                f"{shorter}, which is cut out of the resized picture, and at most {LARGEST_SIDE}"
            )
        _check_normalization(self.mean, self.std)

    @classmethod
    def of_size(
        cls: Type[Self], image_size: Side, mean: Tuple[float, ...], std: Tuple[float, ...]
    ) -> Self:
        """Return the plainest one: resized to the size (bicubic), nothing cut from a square."""
        shorter = min(image_size) if isinstance(image_size, tuple) else image_size
        return cls(
            image_size=image_size,
            resize="pillow-bicubic",
            resize_size=shorter,
            mean=mean,
            std=std,
        )

    @property
    def size(self) -> Tuple[int, int]:
        """Height and width of the input, pixels."""
        side = self.image_size
        return side if isinstance(side, tuple) else (side, side)

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return len(self.mean)

    @property
    def shape(self) -> Tuple[int, int, int]:
        """Shape of the input, (C, H, W)."""
        return (self.channels, *self.size)

    @property
    def resized_size(self) -> Tuple[int, int]:
        """Height and width that a picture is resized to cover, pixels; the input is cut from it."""
        height, width = self.size
        shorter = min(height, width)
        return height * self.resize_size // shorter, width * self.resize_size // shorter

    def describe(self) -> str:
        """Return what is done to pixels, in one line for people."""
        return f"{self._geometry()}, {self._colors()}"

    def _geometry(self) -> str:
        size = "x".join(map(str, self.size))
        if self.resize == "none":
            return f"{size} taken as it is"
        if self.resize == "crop":
            return f"centre {size} cut out, not resized"
        words = f"shorter side resized to {self.resize_size} ({FILTERS[self.resize]})"
        if len(set(self.size)) > 1:
            covered = "x".join(map(str, self.resized_size))
            words = f"resized to cover {covered} ({FILTERS[self.resize]})"
        exact = f"; {size} taken as it is" if self.untouched_at_size else ""
        return f"{words}, centre {size} cut out{exact}"

    def _colors(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        kinds = {1: "grey", 3: "RGB"}
        kind = kinds.get(self.channels, f"{self.channels} channels")
        return f"{kind} / 255, mean {mean}, std {std}"

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        side = self.image_size
        told = {
            **asdict(self),
            "image_size": list(side) if isinstance(side, tuple) else side,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if not self.untouched_at_size:  # as files said it before there was a choice
            del told["untouched_at_size"]
        return told

    @classmethod
    def from_dict(cls: Type[Self], value: Any) -> Self:
        """Rebuild what `to_dict` gave.

        Raises:
            UserInputError: a field is missing, unknown, or out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping):
            raise UserInputError(
                f"preprocessing is a {type(value).__name__}; expected the fields {sorted(names)}"
            )
        if not names - OPTIONAL <= set(value) <= names:
            raise UserInputError(
                f"preprocessing has the fields {sorted(map(str, value))}; expected {sorted(names)}"
            )
        try:
            return cls(
                image_size=value["image_size"],
                resize=str(value["resize"]),
                resize_size=_whole(value["resize_size"]),
                mean=_numbers(value["mean"]),
                std=_numbers(value["std"]),
                untouched_at_size=bool(value.get("untouched_at_size", False)),
            )
        except (TypeError, ValueError, OverflowError) as err:
            raise UserInputError(
                f"preprocessing is {_short(value)}; expected numbers for sizes, mean and std "
                f"({err})"
            ) from err

    def normalize_array(self, images: np.ndarray) -> np.ndarray:
        """Return float32 inputs of uint8 images, (…, C, H, W): the very values that torch gets."""
        mean, std = (
            np.array(values, dtype=np.float32)[:, None, None] for values in (self.mean, self.std)
        )
        scaled = images.astype(np.float32) / np.float32(255)
        normalized: np.ndarray = (scaled - mean) / std
        return normalized


def _side(value: Any) -> Side:
    """Return a whole side, or two that differ."""
    if not isinstance(value, (list, tuple)):
        return _whole(value)
    if len(value) != 2:
        raise UserInputError(f"image size is {_short(value)}; expected a side, or height and width")
    height, width = map(_whole, value)
    return height if height == width else (height, width)


def _numbers(value: Any) -> Tuple[float, ...]:
    """Return numbers of a list; text is none, though Python could make some of it."""
    if isinstance(value, str) or any(isinstance(each, (str, bool)) for each in value):
        raise TypeError(f"{value!r:.60} in place of numbers")
    return tuple(map(float, value))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise UserInputError(f"a size in pixels is {_short(value)}; expected a whole number")
    return int(value)


def _check_normalization(mean: Tuple[float, ...], std: Tuple[float, ...]) -> None:
    fits = 1 <= len(mean) == len(std) <= MOST_CHANNELS
    if not fits or not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise UserInputError(
            f"mean is {_short(mean)} and std is {_short(std)}; expected one finite number a "
            "channel in each, with std above 0"
        )


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
