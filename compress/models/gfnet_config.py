"""The arguments of a GFNet, checked before anything is built of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from compress.errors import UserInputError
from compress.models.frequencies import real_frequencies

__all__ = ["check_config", "check_frequencies", "check_grid", "check_image"]

MAX_SIZE = 1 << 16


def check_config(config: Mapping[str, Any], *, whole_patches: bool = True) -> None:
    """Raise UserInputError unless sizes, image size and drop path are in range.

    Args:
        config: of the network.
        whole_patches: expect the patches to cover the image. Networks that were trained without
            that, as at 600 pixels on 37 patches of 16, tell their grid.
    """
    size, patch = config["image_size"], config["patch_size"]
    counts = [*size, patch, config["in_channels"], config["width"], config["num_classes"]]
    for count in [*counts, *config["hidden"]]:
        if not isinstance(count, int) or not 1 <= count <= MAX_SIZE:
            raise UserInputError(f"a size of the GFNet is {count!r}; expected 1 to {MAX_SIZE}")
    if len(size) != 2 or not config["hidden"]:
        raise UserInputError(
            f"image size is {size} and depth {len(config['hidden'])}; expected a side or height "
            "and width, and at least one block"
        )
    if whole_patches and (size[0] % patch or size[1] % patch):
        raise UserInputError(
            f"image size {size[0]}x{size[1]} is not divisible by the patch size {patch}; expected "
            f"multiples of {patch}, such as {_multiples(size, patch)}"
        )
    if not 0 <= config["drop_path"] < 1:
        raise UserInputError(f"drop_path is {config['drop_path']}; expected 0 <= drop_path < 1")


def check_grid(grid: Sequence[int], tokens: int) -> None:
    """Raise UserInputError unless the grid holds the tokens."""
    if len(grid) != 2 or grid[0] * grid[1] != tokens or grid[0] < 1:
        raise UserInputError(
            f"the grid is {list(grid)}, but there are {tokens} tokens; expected rows and columns "
            f"whose product is {tokens}"
        )


def check_image(image: Tensor, size: Sequence[int], remedy: str) -> None:
    """Raise UserInputError unless images (B, C, H, W) are of the size that a network is built for.

    Args:
        image: the images.
        size: height and width in pixels.
        remedy: what to do, behind "so".
    """
    height, width = size
    if tuple(image.shape[-2:]) != (height, width):
        raise UserInputError(
            f"the image is {image.shape[-2]}x{image.shape[-1]}; this network is built for "
            f"{height}x{width}, so {remedy}"
        )


def check_frequencies(
    frequencies: Sequence[Sequence[int]], grid: tuple[int, int], depth: int
) -> None:
    """Raise UserInputError unless every block keeps some of the grid's frequencies, ascending."""
    known = set(real_frequencies(grid))
    if len(frequencies) != depth:
        raise UserInputError(
            f"frequencies are given for {len(frequencies)} blocks; expected one list for each of "
            f"the {depth} blocks"
        )
    for i, numbers in enumerate(frequencies):
        if not numbers or list(numbers) != sorted(known.intersection(numbers)):
            raise UserInputError(
                f"the frequencies of block {i} are {_shortened(numbers)}; expected some of the "
                f"{len(known)} that a grid of {grid[0]}x{grid[1]} has, each once, ascending"
            )


def _multiples(size: Sequence[int], patch: int) -> str:
    return "x".join(str(max(1, round(side / patch)) * patch) for side in size)


def _shortened(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:8]))
    return f"[{text}, …]" if len(numbers) > 8 else f"[{text}]"
