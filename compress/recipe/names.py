"""Names that become folders: of recipes and of chains."""

import re
from pathlib import Path

from compress.files import is_superseded

__all__ = ["checked_name"]

PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


def checked_name(name: str) -> str:
    """Return a name that is one plain folder on every system.

    Raises:
        ValueError: it is not.

    >>> checked_name("vgg16.short")
    'vgg16.short'
    """
    problem = _problem(name)
    if problem:
        raise ValueError(
            f"{problem}; expected up to 100 letters, digits, dots, underscores and hyphens, as it "
            "names a folder"
        )
    return name


def _problem(name: str) -> str:
    if DEVICES.fullmatch(name):
        return "that is a device on Windows"
    if is_superseded(Path(name)):
        return "that is what moved results are called"
    if name.startswith("."):
        return "it begins with a dot"
    if name.endswith("."):
        return "it ends with a dot"
    return "" if PLAIN.fullmatch(name) else "that is no plain name"
