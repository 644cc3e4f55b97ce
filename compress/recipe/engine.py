"""Run the tasks that are not done yet.

A task is done when its folder holds `done.json` with the fingerprint of what decides its result:
kind and version of the kind, options, data, seed, and the results that it read. A task that was
killed left `started.json` with the same fingerprint, and goes on from what it saved; a folder of
another fingerprint is moved aside first. So a run that was killed continues, a changed option
repeats what depends on it and nothing else, and a finished recipe starts and ends at once.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.files import sweep_parts
from compress.recipe.plan import Task
from compress.recipe.record import read_done, write_done
from compress.recipe.run_folder import clear_task, opened_run, prepare_task

__all__ = ["Context", "Outcome", "Work", "fingerprint_of", "finished", "run_one", "run_tasks"]

logger = logging.getLogger(__name__)


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
    recipe_json: str | None = None,
    fresh: bool = False,
) -> dict[str, Outcome]:
    """Run tasks in order, skipping what is done.

    Args:
        tasks: as `plan_tasks` gives them.
        work: per kind the function that does it and returns its figures; files go to the folder.
        run_dir: one folder below it per task.
        identity: JSON values that decide every task, such as the sha256 of the data and the seed.
        recipe_json: for the recipe.json of the run.
        fresh: clear the run first.

    Returns:
        The outcome of every task by name.

    Raises:
        UserInputError: another process works on this run, or the folder is none of ours.
        CompressError: a task failed; the message names it, and where finished work lies.
    """
    with opened_run(run_dir, recipe_json):
        for task in tasks if fresh else ():
            clear_task(run_dir, task.name)
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
    found = finished(context, fingerprint)
    if found is not None:
        logger.info("%s: unchanged, not run again", place)
        return found
    logger.info("%s", place)
    started = time.perf_counter()
    prepare_task(context.folder, fingerprint, place)
    try:
        figures = work(context)
    except CompressError as err:
        raise type(err)(f"{place}: {err} (finished steps are kept)") from err
    sweep_parts(context.folder, below=True)  # they are no result
    write_done(context.folder, fingerprint, figures)
    logger.info("%s: done in %.1f s", place, time.perf_counter() - started)
    return Outcome(
        task=context.task, folder=context.folder, figures=figures, fingerprint=fingerprint
    )


def finished(context: Context, fingerprint: str) -> Outcome | None:
    """Return what a task left, where it is done and all of it is still there; else None."""
    done = read_done(context.folder)
    if done is None or done.fingerprint != fingerprint or not done.is_whole(context.folder):
        return None
    return Outcome(
        task=context.task, folder=context.folder, figures=done.figures, fingerprint=fingerprint
    )


def fingerprint_of(task: Task, inputs: Mapping[str, Outcome], identity: Mapping[str, Any]) -> str:
    """Return the sha256 of everything that decides what a task makes."""
    content = {
        "kind": task.kind,
        "version": task.version,
        "options": task.options,
        "identity": dict(identity),
        "inputs": {name: outcome.fingerprint for name, outcome in inputs.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
