"""The images that a network is built for: their size and channels, where the network tells."""

from typing import Any

from torch import nn

from compress.errors import UserInputError
from compress.models.gfnet import GFNet
from compress.models.gfnet_resize import resized

__all__ = ["built_for", "for_image_size", "input_channels", "published_size"]


def built_for(model: nn.Module) -> tuple[int, int] | None:
    """Return the only height and width, pixels, that a network takes; None where it takes more."""
    size = getattr(model, "config", {}).get("image_size")
    if size is None:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def published_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the size that networks of this family were published for; None where none is known."""
    side = getattr(model, "default_input_size", None)
    return (side, side) if isinstance(side, int) else None


def for_image_size(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return the network for images of another size; one that takes any size is returned itself.

    Raises:
        UserInputError: the network is built for one size, and cannot be carried over to this one.
        UnsupportedModelError: a GFNet whose filters lost frequencies.
    """
    own = built_for(model)
    if own is None or own == size:
        return model
    if not isinstance(model, GFNet):
        raise UserInputError(
            f"{type(model).__name__} is built for images of {own[0]}x{own[1]}, not "
            f"{size[0]}x{size[1]}; leave the option out, or train it for that size"
        )
    return resized(model, list(size))


def input_channels(model: nn.Module) -> int:
    """Return the channels of the images that a network takes, by what its first layer reads."""
    told: Any = getattr(model, "config", {}).get("in_channels")
    if isinstance(told, int):
        return told
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((layer for layer in model.modules() if isinstance(layer, convolutions)), None)
    return 3 if first is None else first.in_channels
