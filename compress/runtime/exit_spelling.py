"""How people spell where an exit stands: by the path of a module, `blocks.7` also by its number.

An exit stands behind a module of the network. Its path is what `named_modules` calls it, such as
`layer2.4`. Published early-exit networks name their exits by the number of a block, so `blocks.7`
is spelled 7 in tables, plans and options, and both are understood.

A network is counted in blocks where all its exits stand behind numbered blocks; its depth is how
many there are, and the final head is named by the last of them, as in the published logs. The depth
of any other network is 0, and its final head is named in words.

A file may come from a stranger: a path is of bounded length, and holds nothing that would spoil a
line of text or a list with commas.

>>> [spelled("blocks.7"), spelled("layer2.4")]
[7, 'layer2.4']
>>> path_of(7)
'blocks.7'
"""

import re
from typing import Any, Sequence, Union

__all__ = [
    "FINAL_HEAD",
    "Position",
    "check_order",
    "joined",
    "last_position",
    "path_of",
    "position_of",
    "spelled",
]

Position = Union[int, str]
BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,5})")
FINAL_HEAD = "final head"
MAX_DEPTH = 1 << 16
MAX_PATH = 200
MAX_SHOWN = 20


def spelled(path: str) -> Position:
    """Return the usual spelling of the path of a module."""
    found = BLOCK.fullmatch(path)
    return int(found[1]) if found else path


def path_of(position: Position) -> str:
    """Return the path of the module that a position names."""
    return f"blocks.{position}" if isinstance(position, int) else position


def last_position(depth: int) -> Position:
    """Return what the final head is called.

    >>> [last_position(12), last_position(0)]
    [11, 'final head']
    """
    return depth - 1 if depth else FINAL_HEAD


def position_of(value: Any) -> Position:
    """Return the usual spelling of a position that stood in a file.

    Raises:
        ValueError: it is no number of a block, and no path of a module.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_DEPTH:
        return value
    if not isinstance(value, str) or not _is_path(value):
        raise ValueError(
            f"{value!r:.60} in place of a position, the number of a block or the path of a module"
        )
    return spelled(value)


def check_order(positions: Sequence[Position], depth: int) -> None:
    """Raise ValueError unless exits can stand there, each once, in a network of this depth."""
    shown = f"exits behind {joined(positions)}"
    if not 0 <= depth <= MAX_DEPTH:
        raise ValueError(f"{depth} blocks")
    if len({path_of(position) for position in positions}) < len(positions):
        raise ValueError(f"{shown}, one of them twice")
    if depth and not all(isinstance(position, int) for position in positions):
        raise ValueError(f"{shown} in a network of {depth} blocks")
    blocks: Any = [-1, *positions, depth - 1]
    if depth and not all(a < b for a, b in zip(blocks, blocks[1:])):
        raise ValueError(f"{shown} of {depth} blocks")


def joined(positions: Sequence[Position]) -> str:
    """Return positions as options spell them, such as "7,layer2.4"; of many the first."""
    more = ",…" if len(positions) > MAX_SHOWN else ""
    return ",".join(map(str, positions[:MAX_SHOWN])) + more


def _is_path(text: str) -> bool:
    return (
        0 < len(text) <= MAX_PATH
        and text.isprintable()
        and not any(character.isspace() or character == "," for character in text)
    )
