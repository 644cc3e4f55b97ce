"""The mark of this machine: whether a list of engines was written here, by this user.

An engine is machine code, and its sha256 beside it proves nothing against who wrote both. So who
builds engines marks their list with a key that never travels with a bundle: 32 random bytes in the
user's folder of state, `$XDG_STATE_HOME` or `~/.local/state`, readable by the user alone. The mark
is an HMAC-SHA256 of the list, which names the sha256 of every engine.
"""

import hashlib
import hmac
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any, Mapping, Optional

__all__ = ["MARK", "is_marked_here", "key_path", "mark_of"]

MARK = "mark"
KEY_BYTES = 32

log = logging.getLogger(__name__)


def key_path() -> Path:
    """Return where the key of this user lies, or would."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as the standard of these folders says
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state, "early-exit-compress", "engines.key")


def mark_of(value: Mapping[str, Any]) -> Optional[str]:
    """Return the mark of a list of engines; the key is made where there is none.

    None, with a warning, where there can be no key: these engines need --trust-engines.
    """
    try:
        key = _key() or _new_key()
    except OSError as err:
        log.warning(
            "the engines are not marked as built here, as %s cannot be written (%s); they are "
            "used with --trust-engines alone",
            key_path(),
            err.strerror or err,
        )
        return None
    return _signed(key, value)


def is_marked_here(value: Mapping[str, Any]) -> bool:
    """Return whether the mark in a list of engines is that of this machine's key."""
    mark = value.get(MARK)
    try:
        key = _key()
    except OSError:
        return False
    if key is None or not isinstance(mark, str):
        return False
    return hmac.compare_digest(_signed(key, value).encode(), mark.encode("utf-8", "replace"))


def _signed(key: bytes, value: Mapping[str, Any]) -> str:
    rest = {name: content for name, content in value.items() if name != MARK}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> Optional[bytes]:
    """Return the key; None where there is none, or one that others may have written or read."""
    path = key_path()
    if not path.exists():
        return None
    with open(str(path), "rb") as file:
        state = os.fstat(file.fileno())
        is_own = not hasattr(os, "getuid") or state.st_uid == os.getuid()
        is_private = os.name == "nt" or not stat.S_IMODE(state.st_mode) & 0o077
        key = file.read(KEY_BYTES + 1)
    if is_own and is_private and len(key) == KEY_BYTES:
        return key
    log.warning("%s is damaged, or not this user's alone; remove it, and build engines anew", path)
    return None


def _new_key() -> bytes:
    path = key_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = os.urandom(KEY_BYTES)
    try:
        handle = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as err:
        found = _key()  # another build made it meanwhile
        if found is None:
            raise OSError(f"{path} is there, and no key of this user") from err
        return found
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
