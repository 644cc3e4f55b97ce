"""The folder of a run: whose it is, who works in it, and what no longer fits.

A folder of ours carries `.compress-run.json`. One without it that holds anything is somebody's, and
is not touched. Two kinds are taken over: what the version before the mark left, known by its
`recipe.json` and by steps with a record; and a folder with nothing in it but runs by seed.

Results are never removed unless `--fresh` asks for it: a step's folder that no longer fits its
options is moved aside, to `train.superseded-1`.
"""

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.errors import UserInputError, disk_error
from compress.files import is_superseded, move_aside, remove, sweep_parts, write_json, write_text
from compress.recipe.record import (
    has_record,
    is_task_folder,
    read_done,
    read_started,
    write_started,
)

__all__ = ["MARK", "check_run_folder", "clear_task", "opened_run", "prepare_task"]

logger = logging.getLogger(__name__)

MARK = ".compress-run.json"
FORMAT = "compress.run/1"
LOCK = ".lock"
RECORDS = ("*/started.json", "*/*/started.json", "*/*/*/started.json")


def check_run_folder(run_dir: Path) -> None:
    """Find out whether a run may be written into a folder.

    Raises:
        UserInputError: it is a file, or holds something and is not known as a run of ours.
    """
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise UserInputError(f"output {run_dir} is a file; expected a folder for the run")
    if _is_marked(run_dir) or _is_of_former_version(run_dir):
        return
    foreign = sorted(each.name for each in run_dir.iterdir() if not _is_beginning(each))
    if foreign:
        raise UserInputError(
            f"output {run_dir} is not a run of ours, as it has no {MARK}, and holds "
            f"{', '.join(map(repr, foreign[:3]))}{', …' * (len(foreign) > 3)}; give another folder "
            "with -o/--output"
        )


@contextmanager
def opened_run(run_dir: Path, recipe_json: str | None = None) -> Iterator[None]:
    """Hold a run for this process, marked as ours and without what killed writers left.

    The lock goes with the process, however it ends. Nothing is written before it is held.

    Args:
        run_dir: folder of the run.
        recipe_json: what its recipe.json shall hold, None to leave that alone.

    Raises:
        UserInputError: another process works on the run, or the folder is somebody else's.
    """
    check_run_folder(run_dir)
    with _locked(run_dir):
        check_run_folder(run_dir)
        if not _is_marked(run_dir):
            write_json(run_dir / MARK, {"format": FORMAT})
        sweep_parts(run_dir, below=True)
        if recipe_json is not None:
            write_text(run_dir / "recipe.json", recipe_json)
        yield


def clear_task(run_dir: Path, name: str) -> None:
    """Remove what a step left, and what was moved aside of it, where a record says it is ours."""
    folder = run_dir / name
    beside = list(folder.parent.iterdir()) if folder.parent.is_dir() else []
    for each in (folder, *beside):
        is_of_step = each.name == folder.name or each.name.startswith(f"{folder.name}.superseded-")
        if is_of_step and (each == folder or is_superseded(each)):
            remove(each, is_ours=is_task_folder)


def prepare_task(folder: Path, fingerprint: str, place: str) -> None:
    """Make the folder of a step ready: go on with what was begun, move aside what does not fit.

    Args:
        folder: of the step.
        fingerprint: of what decides its result.
        place: names the step in messages.

    Raises:
        UserInputError: the folder holds something that no step of ours made.
    """
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"{folder} is a file; expected a folder for the step, so move it away")
    held = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if "done.json" not in held and read_started(folder) == fingerprint:
        return  # interrupted: it goes on from what it saved
    if held and not has_record(folder):
        raise UserInputError(
            f"{folder} holds {held[0]!r}, which no step of ours made; move it away, or give "
            "another folder with -o/--output"
        )
    if set(held) - {"started.json"}:
        reason = _reason(folder, fingerprint)
        logger.warning("%s: %s; kept as %s", place, reason, move_aside(folder).name)
    write_started(folder, fingerprint)


def _reason(folder: Path, fingerprint: str) -> str:
    done = read_done(folder)
    if done is None and (folder / "done.json").exists():
        return "its record is damaged"
    if done is not None and done.fingerprint == fingerprint:
        return "its files are not those that it left"
    return "what is there was made with other options, inputs or code"


def _is_marked(run_dir: Path) -> bool:
    found = _read(run_dir / MARK).get("format")
    return isinstance(found, str) and found.startswith("compress.run/")


def _is_of_former_version(run_dir: Path) -> bool:
    recipe = _read(run_dir / "recipe.json")
    if not {"name", "data", "seed", "steps", "chains"} <= set(recipe):
        return False
    return any(
        is_task_folder(record.parent) for pattern in RECORDS for record in run_dir.glob(pattern)
    )


def _is_beginning(path: Path) -> bool:
    """Whether an entry is what a run has before its mark, or a run by seed."""
    if path.name == LOCK or path.name.startswith(f".{MARK}."):
        return path.is_file()
    number = path.name.removeprefix("seed-")
    return path.name.startswith("seed-") and number.isdecimal() and _is_marked(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / LOCK, "a")  # noqa: SIM115 - closed below, errors told here
    except OSError as err:
        raise disk_error(err, run_dir) or UserInputError(
            f"output {run_dir} cannot be written ({err.strerror}); give another folder with "
            "-o/--output"
        ) from err
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise UserInputError(
                f"another process is running {run_dir}; wait for it, or give another folder with -o"
            ) from err
        yield
