"""A few images to look at a network with: pictures of a data set, or noise; and one look."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import Checkpoint
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UnsupportedModelError, UserInputError

__all__ = ["check_forward", "image_size_of", "noise", "pictures"]


def image_size_of(
    checkpoint: Checkpoint, model: nn.Module, *, asked: int | None = None
) -> tuple[int, int]:
    """Return height and width: as asked, as the network is built for, as recorded, or 224."""
    built_for: Any = getattr(model, "config", {}).get("image_size")
    recorded = checkpoint.meta.get("preprocessing", {}).get("image_size")
    size = asked or built_for or recorded or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def pictures(
    data: str | ImageData,
    size: tuple[int, int],
    *,
    count: int,
    seed: int = 0,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, str]:
    """Return the first images of the calibration split (N, C, H, W) and their name.

    Args:
        data: where they come from.
        size: height and width.
        count: how many at most.
        seed: of the split, where `data` is a name.
        normalize: from uint8 to the network's input; None takes the data's own.

    Raises:
        UserInputError: the network takes images that are not square, which no data give.
    """
    if isinstance(data, str):
        if size[0] != size[1]:
            raise UserInputError(
                f"the network takes images of {size[0]}x{size[1]}, and --data {data} gives square "
                "ones; leave --data out to compare outputs on noise"
            )
        data = load_data(data, image_size=size[0], seed=seed)
    split = data.splits["calibration"]
    first = split.images(torch.arange(min(count, len(split))))
    return (normalize or data.normalize)(first), f"{len(first)} calibration images of {data.name}"


def noise(
    model: nn.Module, size: tuple[int, int], *, count: int, seed: int = 0
) -> tuple[Tensor, str]:
    """Return normal noise (N, C, H, W) and its name."""
    channels = getattr(model, "config", {}).get("in_channels", 3)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, *size, generator=generator)
    return images, f"{count} images of noise (seed {seed})"


def check_forward(model: nn.Module, images: Tensor, *, option: str) -> Tensor:
    """Show the network one image; return what it says.

    Args:
        model: in eval mode.
        images: (N, C, H, W), N at least 1.
        option: by which another size is given, such as "--image-size".

    Raises:
        UserInputError: the network does not take images of this size.
        UnsupportedModelError: it computes NaN or infinity.
    """
    try:
        with torch.inference_mode():
            output: Tensor = model(images[:1])
    except Exception as err:  # whatever the layers raise for a size that they cannot take
        raise UserInputError(
            f"the network does not take images of {tuple(images.shape[1:])}: {err}; "
            f"give the size that it was trained with by {option}"
        ) from err
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        raise UnsupportedModelError(
            "the network computes NaN or infinity as it is; its weights are damaged or its "
            "training diverged, so take an earlier checkpoint"
        )
    return output
