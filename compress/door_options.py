"""Options that several doors share: how a checkpoint is opened, and where images come from.

Nothing here imports torch, so that help and mistakes of typing cost no time.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli import parse_numbers
from compress.errors import UserInputError
from compress.runtime.exit_spelling import Position, position_of, spelled

if TYPE_CHECKING:
    from compress.opened import Opening

__all__ = [
    "DATA",
    "add_cache",
    "add_data",
    "add_opening",
    "cache_of",
    "opening_of",
    "parse_positions",
    "parse_shape",
]

DATA = "digits, cifar10:DIR, cifar100:DIR, folder:DIR or numpy:FILE.npz"


def add_opening(parser: argparse.ArgumentParser, *, size: str = "") -> None:
    """Add what `opening_of` reads.

    Args:
        parser: of a door that opens a checkpoint.
        size: what `--image-size` means at this door, where it is more than usual.
    """
    group = parser.add_argument_group("how the checkpoint is read")
    add = group.add_argument
    words = "function that builds a network of your own; never run because a file names it"
    add("--model", metavar="MODULE:FACTORY", help=words)
    words = size or "side, HxW or CxHxW of the images, where the checkpoint does not record it"
    add("--image-size", "--input-size", metavar="PIXELS", help=words)
    words = "blocks behind which the heads of a foreign early-exit checkpoint stand, such as 7,8,9"
    add("--head-positions", metavar="BLOCKS", help=words)
    add("--weights", metavar="NAME", help="which of several sets of weights, such as ema")
    words = "most memory that the tensors may take, as the file says before it is read"
    add("--max-gib", type=float, default=16.0, metavar="GIB", help=words)
    add("--unsafe-pickle", action="store_true", help="read pickled modules; runs the file's code")


def opening_of(
    options: argparse.Namespace, *, resample: bool = False, override: bool = False
) -> "Opening":
    """Return how the checkpoint is opened.

    Args:
        options: as parsed.
        resample: a GFNet may be carried over to another size.
        override: what is asked for wins over what is recorded.

    Raises:
        UserInputError: an option has another form.
    """
    heads = parse_numbers(options.head_positions, "--head-positions", int)
    channels, size = parse_shape(options.image_size)
    from compress.opened import Opening

    return Opening(
        factory=options.model,
        unsafe_pickle=options.unsafe_pickle,
        head_positions=heads,
        image_size=size,
        channels=channels,
        weights=options.weights,
        max_gib=options.max_gib,
        resample=resample,
        override=override,
    )


def add_data(parser: argparse.ArgumentParser, *, required: bool, purpose: str = "") -> None:
    """Add where images come from, and the seed of their split."""
    words = f"{purpose} {DATA}".strip()
    parser.add_argument("--data", required=required, metavar="SPEC", help=words)
    add_cache(parser)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add where decoded images are kept."""
    words = "folder for decoded images; 'off' decodes them in every pass (a folder of this user's)"
    parser.add_argument("--cache", metavar="DIR", help=words)


def cache_of(options: argparse.Namespace) -> Path | str | None:
    """Return the folder of decoded images, or "off"; None for the usual folder."""
    return options.cache if options.cache in (None, "off") else Path(options.cache)


def parse_positions(text: str | None, option: str) -> tuple[Position, ...] | None:
    """Return where exits stand by "7,8" or "layer1.8,layer2.4"; None of None.

    A position is the number of a block, or the path of a module as the network names it;
    `blocks.7` is 7.

    Raises:
        UserInputError: there is nothing between two commas, or what cannot be a path.
    """
    if text is None:
        return None
    try:
        return tuple(_position(token.strip()) for token in text.split(","))
    except ValueError as err:
        raise UserInputError(
            f"{option} is {text!r:.200}; expected blocks or paths of modules between commas, "
            "such as 7,8,9 or layer1.8,layer2.4"
        ) from err


def _position(token: str) -> Position:
    block = spelled(f"blocks.{token}")
    return block if isinstance(block, int) else position_of(token)


def parse_shape(text: str | None) -> tuple[int | None, tuple[int, int] | None]:
    """Return channels and (height, width) of "32", "256x128" or "1x28x28"; None what is not told.

    >>> parse_shape("1x28x30")
    (1, (28, 30))

    Raises:
        UserInputError: it is something else.
    """
    if text is None:
        return None, None
    parts = text.lower().replace("×", "x").split("x")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts):
        raise UserInputError(
            f"--image-size is {text!r}; expected a side such as 32, height and width such as "
            "256x128, or channels before them such as 1x28x28"
        )
    numbers = [int(part) for part in parts]
    if min(numbers) < 1 or max(numbers) > 1 << 14:
        raise UserInputError(f"--image-size is {text}; expected at least 1 and at most 16384")
    height, width = numbers[-2:] if len(numbers) > 1 else numbers * 2
    return numbers[0] if len(numbers) == 3 else None, (height, width)
