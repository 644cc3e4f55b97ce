"""Layer patterns, as `--ignore` takes them. One that matches nothing is an error, not a no-op."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from compress.errors import UserInputError

__all__ = ["matching"]


def matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Return the names that any shell-style pattern (`*`, `?`, `[…]`) matches.

    >>> sorted(matching(["features.1", "features.4"], ["*.4"]))
    ['features.4']

    Raises:
        UserInputError: a pattern matches none of the names.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0) or ["none"]
            raise UserInputError(
                f"--ignore {pattern!r} matches no layer whose channels can be removed; "
                f"expected a name or pattern such as {', '.join(near)}"
            )
        found.update(hits)
    return found
