"""The images that a network is built for: their size and channels, where the network tells."""

from typing import Any

from torch import nn

from compress.errors import UserInputError
from compress.models.early_exit import EarlyExitNetwork
from compress.models.gfnet import GFNet
from compress.models.gfnet_resize import resized
from compress.models.rebuild import rebuilt

__all__ = ["built_for", "for_image_size", "input_channels", "published_size", "unusual_size"]

COMMON = 32  # sizes that networks are trained at are multiples of it


def built_for(model: nn.Module) -> tuple[int, int] | None:
    """Return the only height and width, pixels, that a network takes; None where it takes more."""
    if isinstance(model, EarlyExitNetwork):
        return built_for(model.backbone)
    size = getattr(model, "config", {}).get("image_size")
    if size is None:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def published_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the size that networks of this family were published for; None where none is known."""
    if isinstance(model, EarlyExitNetwork):
        return published_size(model.backbone)
    side = getattr(model, "default_input_size", None)
    return (side, side) if isinstance(side, int) else None


def for_image_size(model: nn.Module, size: tuple[int, int], *, resample: bool = True) -> nn.Module:
    """Return the network for images of another size; one that takes any size is returned itself.

    Args:
        model: left as it is.
        size: height and width, pixels.
        resample: carry a GFNet over to other patches.

    Raises:
        UserInputError: the network is built for one size, and cannot be carried over to this one.
        UnsupportedModelError: a GFNet whose filters lost frequencies.
    """
    own = built_for(model)
    if own is None or own == size:
        return model
    if isinstance(model, GFNet):
        patch = model.config["patch_size"]
        if [side // patch for side in size] == [side // patch for side in own]:
            return rebuilt(model, model.state_dict(), image_size=list(size))  # the same patches
        if resample:
            return resized(model, list(size))
    raise UserInputError(
        f"the network is built for {own[0]}x{own[1]}, not for images of {size[0]}x{size[1]}; leave "
        "the option out, or fine-tune it for that size first"
    )


def unusual_size(model: nn.Module) -> str | None:
    """Say what else the size of a network that shapes told may be, where it looks unusual.

    Patches tell a size up to a remainder: 37 patches of 16 are an image of 592 to 607 pixels.
    """
    if isinstance(model, EarlyExitNetwork):
        return unusual_size(model.backbone)
    if not isinstance(model, GFNet) or all(
        side % COMMON == 0 for side in model.config["image_size"]
    ):
        return None
    side, patch = model.config["image_size"][0], model.config["patch_size"]
    return (
        f"{side // patch} patches of {patch} pixels a side are an image of {side} to "
        f"{side + patch - 1}; {side} is taken, --image-size tells another"
    )


def input_channels(model: nn.Module) -> int:
    """Return the channels of the images that a network takes, by what its first layer reads."""
    if isinstance(model, EarlyExitNetwork):
        return input_channels(model.backbone)
    told: Any = getattr(model, "config", {}).get("in_channels")
    if isinstance(told, int):
        return told
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((layer for layer in model.modules() if isinstance(layer, convolutions)), None)
    return 3 if first is None else first.in_channels
