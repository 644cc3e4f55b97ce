"""Run the tasks that are not done yet.

A task is done when its folder holds `done.json` with the fingerprint of what decides its result:
kind, options, data, seed, the results that it read, and the sources of this package. A task that
was killed left `started.json` with the same fingerprint, and goes on from what it saved; a folder
of another fingerprint is cleared first. So a run that was killed continues, a changed option
repeats what depends on it and nothing else, and a finished recipe starts and ends at once.
"""

import fcntl
import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compress
from compress.errors import CompressError, UserInputError
from compress.files import sha256_of, write_json
from compress.recipe.plan import Task

__all__ = [
    "Context",
    "Outcome",
    "files_are_whole",
    "fingerprint_of",
    "locked",
    "read_json_file",
    "run_one",
    "run_tasks",
]

logger = logging.getLogger(__name__)

DONE, STARTED = "done.json", "started.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished task left.

    Attributes:
        task: what it was.
        folder: where its files are.
        figures: JSON values that later tasks and the table read.
        fingerprint: of everything that decided it.
    """

    task: Task
    folder: Path
    figures: dict[str, Any]
    fingerprint: str

    def path(self, key: str) -> Path:
        """Return the file whose name the figures hold under `key`."""
        return self.folder / str(self.figures[key])


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a task works with: itself, its folder, and the outcomes of what it needs."""

    task: Task
    folder: Path
    inputs: Mapping[str, Outcome]

    @property
    def only_input(self) -> Outcome:
        """The outcome of the one task that it needs."""
        (outcome,) = self.inputs.values()
        return outcome

    @property
    def network(self) -> Outcome:
        """The outcome that holds the checkpoint to work on."""
        (outcome,) = (each for each in self.inputs.values() if "checkpoint" in each.figures)
        return outcome

    def of(self, kind: str) -> Outcome | None:
        """The outcome of the needed task of this kind, None where there is none."""
        found = [each for each in self.inputs.values() if each.task.kind == kind]
        return found[0] if found else None


Work = Callable[[Context], dict[str, Any]]


def run_tasks(
    tasks: Sequence[Task],
    work: Mapping[str, Work],
    run_dir: Path,
    *,
    identity: Mapping[str, Any],
    fresh: bool = False,
) -> dict[str, Outcome]:
    """Run tasks in order, skipping what is done.

    Args:
        tasks: as `plan_tasks` gives them.
        work: per kind the function that does it and returns its figures; files go to the folder.
        run_dir: one folder below it per task.
        identity: JSON values that decide every task, such as the sha256 of the data and the seed.
        fresh: clear the run first.

    Returns:
        The outcome of every task by name.

    Raises:
        UserInputError: another process works on this run.
        CompressError: a task failed; the message names it, and where finished work lies.
    """
    with locked(run_dir):
        if fresh:
            for task in tasks:
                shutil.rmtree(run_dir / task.name, ignore_errors=True)
        outcomes: dict[str, Outcome] = {}
        for number, task in enumerate(tasks, start=1):
            inputs = {name: outcomes[name] for name in task.needs}
            fingerprint = fingerprint_of(task, inputs, identity)
            context = Context(task=task, folder=run_dir / task.name, inputs=inputs)
            place = f"[{number}/{len(tasks)}] {task.name}"
            outcomes[task.name] = run_one(context, work[task.kind], fingerprint, place)
        return outcomes


def run_one(context: Context, work: Work, fingerprint: str, place: str) -> Outcome:
    """Return what a task left when it is done already; else do it now."""
    done = read_json_file(context.folder / DONE)
    if done.get("fingerprint") == fingerprint and files_are_whole(context.folder, done["files"]):
        logger.info("%s: unchanged, not run again", place)
        figures = done["figures"]
    else:
        logger.info("%s", place)
        started = time.perf_counter()
        _begin(context.folder, fingerprint)
        try:
            figures = work(context)
        except CompressError as err:
            raise type(err)(f"{place}: {err} (finished steps are kept)") from err
        _finish(context.folder, fingerprint, figures)
        logger.info("%s: done in %.1f s", place, time.perf_counter() - started)
    return Outcome(
        task=context.task, folder=context.folder, figures=figures, fingerprint=fingerprint
    )


def _begin(folder: Path, fingerprint: str) -> None:
    """Keep what an interrupted run of the same fingerprint saved; clear anything else."""
    (folder / DONE).unlink(missing_ok=True)
    if read_json_file(folder / STARTED).get("fingerprint") != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / STARTED, {"fingerprint": fingerprint})


def _finish(folder: Path, fingerprint: str, figures: dict[str, Any]) -> None:
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (DONE, STARTED)
    }
    write_json(folder / DONE, {"fingerprint": fingerprint, "figures": figures, "files": files})


def files_are_whole(folder: Path, files: Mapping[str, str]) -> bool:
    """Tell whether all files are there with the sha256 that they were left with."""
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in files.items()
    )


def fingerprint_of(task: Task, inputs: Mapping[str, Outcome], identity: Mapping[str, Any]) -> str:
    """Return the sha256 of everything that decides what a task makes."""
    content = {
        "kind": task.kind,
        "options": task.options,
        "identity": dict(identity),
        "inputs": {name: outcome.fingerprint for name, outcome in inputs.items()},
        "code": _code_version(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code_version() -> str:
    """Sha256 of the sources of this package."""
    root = Path(compress.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_json_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged: not done either way
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run for this process. The lock goes with the process, however it ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise UserInputError(
                f"another process is running {run_dir}; wait for it, or give another folder with -o"
            ) from err
        yield
