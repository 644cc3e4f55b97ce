"""What the names and shapes of a GFNet checkpoint tell about the network."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compress.errors import UnsupportedModelError

__all__ = ["DISTIL_TOKENS", "infer_gfnet_config", "numbered", "shape_of", "token_grid"]

DISTIL_TOKENS = 2  # class and distillation


def token_grid(patches: tuple[int, int], *, distilled: bool) -> tuple[int, int]:
    """Return the rows and columns on which the filters see the tokens.

    Patches lie as in the image. With two tokens more there is no such layout, so the distilled
    networks that this follows took the largest prime factor as rows: 14*14 + 2 = 198 = 11 x 18,
    16*16 + 2 = 258 = 43 x 6, 8*8 + 2 = 66 = 11 x 6.

    >>> token_grid((14, 14), distilled=True)
    (11, 18)
    """
    if not distilled:
        return patches
    tokens = patches[0] * patches[1] + DISTIL_TOKENS
    rows = _largest_prime_factor(tokens)
    return rows, tokens // rows


def infer_gfnet_config(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the configuration of a GFNet from a state_dict; heads and gates of exits do not count.

    Returns:
        None where the names are not those of a GFNet.

    Raises:
        UnsupportedModelError: the names of a GFNet, but shapes that fit none.
    """
    depth = numbered(state, r"blocks\.(\d+)\.filter\.complex_weight")
    if depth == 0 or "patch_embed.proj.weight" not in state:
        return None
    _check_whole_filters(state, depth)
    width, in_channels, patch_size, _ = shape_of(state, "patch_embed.proj.weight", 4)
    distilled = "cls_token" in state
    image_size, grid = _infer_sizes(state, patch_size, distilled)
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "width": width,
        "hidden": [shape_of(state, f"blocks.{i}.mlp.fc1.weight", 2)[0] for i in range(depth)],
        "num_classes": shape_of(state, "head.weight", 2)[0],
        "distilled": distilled,
        "grid": grid,
        "hidden_scale": "blocks.0.mlp.scale" in state,
        "frequency_scale": False,
    }


def numbered(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many names match `pattern`, whose group is a number.

    Raises:
        UnsupportedModelError: the numbers are not 0, 1, 2, ….
    """
    found = sorted(int(match[1]) for name in state if (match := re.fullmatch(pattern, name)))
    if found != list(range(len(found))):
        raise UnsupportedModelError(
            f"the checkpoint has {pattern} for the numbers {found}; expected 0 to "
            f"{len(found) - 1} without a gap, so it is damaged or of another network"
        )
    return len(found)


def _infer_sizes(
    state: Mapping[str, Tensor], patch_size: int, distilled: bool
) -> tuple[list[int], list[int]]:
    """The grid is rows of the filter times what is left; it is the image's unless distilled."""
    tokens = shape_of(state, "pos_embed", 3)[1]
    rows, half, *_ = shape_of(state, "blocks.0.filter.complex_weight", 4)
    columns = tokens // rows if rows else 0
    if rows * columns != tokens or columns // 2 + 1 != half:
        raise UnsupportedModelError(
            f"pos_embed holds {tokens} tokens and the filters have {rows}x{half} frequencies; "
            "expected rows x columns tokens and rows x (columns // 2 + 1) frequencies"
        )
    patches = _square(tokens - DISTIL_TOKENS) if distilled else (rows, columns)
    return [side * patch_size for side in patches], [rows, columns]


def _check_whole_filters(state: Mapping[str, Tensor], depth: int) -> None:
    for name in (f"blocks.{i}.filter.complex_weight" for i in range(depth)):
        if state[name].dim() == 3:
            raise UnsupportedModelError(
                f"{name} holds {len(state[name])} frequencies one by one, as frequency slimming "
                "stores them, and shapes do not tell which; expected the checkpoint that compress "
                "wrote, whose configuration names them"
            )


def _square(tokens: int) -> tuple[int, int]:
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side**2 != tokens:
        raise UnsupportedModelError(
            f"a distilled GFNet with {tokens} patches does not tell its image size; expected a "
            "square number of patches"
        )
    return side, side


def shape_of(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Return the shape of a tensor of a GFNet.

    Raises:
        UnsupportedModelError: it is missing, or has another number of dimensions.
    """
    shape = tuple(state[name].shape) if name in state else ()
    if len(shape) != dims:
        raise UnsupportedModelError(
            f"the checkpoint looks like a GFNet, but its {name} has shape {shape or 'none'}; "
            f"expected {dims} dimensions as in the published layout"
        )
    return shape


def _largest_prime_factor(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor == 0:
            number //= factor
        else:
            factor += 1
    return number
