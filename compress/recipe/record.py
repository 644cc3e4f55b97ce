"""What a step's folder says of itself: begun, or done with which figures and files.

`started.json` is written first and names the fingerprint of what is being made; `done.json` is
written last, with the sha256 of every file. A folder with neither was not made by us.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.files import sha256_of, write_json

__all__ = [
    "Done",
    "has_record",
    "is_task_folder",
    "read_done",
    "read_started",
    "write_done",
    "write_started",
]

DONE, STARTED = "done.json", "started.json"
NOT_RECORDED = (DONE, STARTED, ".lock")


@dataclass(frozen=True, kw_only=True)
class Done:
    """The record of a finished step.

    Attributes:
        fingerprint: of everything that decided it.
        figures: JSON values that later steps read.
        files: sha256 by name, relative to the folder.
    """

    fingerprint: str
    figures: dict[str, Any]
    files: dict[str, str]

    def is_whole(self, folder: Path) -> bool:
        """Tell whether all files are there with the sha256 that they were left with."""
        return all(
            (folder / name).is_file() and sha256_of(folder / name) == digest
            for name, digest in self.files.items()
        )


def read_done(folder: Path) -> Done | None:
    """Return the record of a finished step; None where there is none, or a damaged one."""
    content = _object_in(folder / DONE)
    try:
        done = Done(**content)
    except TypeError:  # other keys than ours
        return None
    fits = isinstance(done.fingerprint, str) and isinstance(done.figures, dict)
    return done if fits and isinstance(done.files, dict) else None


def write_done(folder: Path, fingerprint: str, figures: Mapping[str, Any]) -> None:
    """Record that the step is done, with every file that lies in its folder."""
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_RECORDED
    }
    content = {"fingerprint": fingerprint, "figures": dict(figures), "files": files}
    write_json(folder / DONE, content)


def read_started(folder: Path) -> str | None:
    """Return the fingerprint of what was begun in a folder, None where nothing was."""
    found = _object_in(folder / STARTED).get("fingerprint")
    return found if isinstance(found, str) else None


def write_started(folder: Path, fingerprint: str) -> None:
    """Record what is begun in a folder; this is the first file of it."""
    write_json(folder / STARTED, {"fingerprint": fingerprint})


def has_record(folder: Path) -> bool:
    """Whether something was begun or done in the folder, as far as names tell."""
    return (folder / DONE).exists() or (folder / STARTED).exists()


def is_task_folder(folder: Path) -> bool:
    """Whether a readable record says that a folder was made by us."""
    return read_started(folder) is not None or read_done(folder) is not None


def _object_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not there, or damaged: not done either way
        return {}
    return content if isinstance(content, dict) else {}
