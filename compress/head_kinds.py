"""The kinds of heads by their names, for options and checks that shall not wait for torch."""

import re

from compress.errors import UserInputError

__all__ = ["DEFAULT_HEAD", "HEAD_KINDS", "check_head_kind"]

HEAD_KINDS = "linear, hidden:N, conv or conv:N"
DEFAULT_HEAD = "linear"
KIND = re.compile(r"linear|conv|(hidden|conv):([1-9][0-9]{0,5})")


def check_head_kind(kind: str) -> None:
    """Raise UserInputError unless there is such a head.

    >>> check_head_kind("hidden:64")
    """
    if KIND.fullmatch(kind) is None:
        raise UserInputError(f"--head is {kind!r:.60}; expected {HEAD_KINDS}")
