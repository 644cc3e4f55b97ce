"""The kinds of heads by their names, for options and checks that shall not wait for torch."""

import re

from compress.errors import UserInputError

__all__ = ["DEFAULT_HEAD", "HEAD_KINDS", "check_head_kind"]

MAX_WIDTH = 8192  # a head of more is a slip of the hand, and takes the memory of the machine

HEAD_KINDS = "linear, hidden:N, conv or conv:N"
DEFAULT_HEAD = "linear"
KIND = re.compile(r"linear|conv|(hidden|conv):([1-9][0-9]{0,5})")


def check_head_kind(kind: str) -> None:
    """Raise UserInputError unless there is such a head.

    >>> check_head_kind("hidden:64")
    """
    found = KIND.fullmatch(kind)
    if found is None or int(found[2] or 0) > MAX_WIDTH:
        raise UserInputError(
            f"the kind of head is {kind!r:.60}; expected {HEAD_KINDS}, N from 1 to {MAX_WIDTH}"
        )
