"""How people spell where an exit stands: by the path of a module, `blocks.7` also by its number.

An exit stands behind a module of the network. Its path is what `named_modules` calls it, such as
`layer2.4`. Published early-exit networks name their exits by the number of a block, so `blocks.7`
is spelled 7 in tables, plans and options, and both are understood.

>>> [spelled("blocks.7"), spelled("layer2.4")]
[7, 'layer2.4']
>>> path_of(7)
'blocks.7'
"""

import re

__all__ = ["Position", "path_of", "spelled"]

Position = int | str
BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,5})")


def spelled(path: str) -> Position:
    """Return the usual spelling of the path of a module."""
    found = BLOCK.fullmatch(path)
    return int(found[1]) if found else path


def path_of(position: Position) -> str:
    """Return the path of the module that a position names."""
    return f"blocks.{position}" if isinstance(position, int) else position
