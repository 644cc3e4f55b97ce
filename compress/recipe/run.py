"""Run a recipe from its file to its table: here, in several processes, or on a cluster."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.data.image_data import ImageData
from compress.errors import CompressError, UserInputError
from compress.models.channel_kinds import resolve_kinds, with_scales
from compress.models.channels import Slimmable
from compress.models.image_size import input_channels
from compress.optional import require
from compress.recipe.engine import Context, Outcome, Work, run_tasks
from compress.recipe.jobs import Run, local_processes, run_side_by_side, slurm_jobs
from compress.recipe.networks import began_with, recipe_data
from compress.recipe.plan import Task, plan_tasks
from compress.recipe.run_folder import check_run_folder
from compress.recipe.schema import Recipe, Step
from compress.recipe.tasks import work_of
from compress.slimming.patterns import matching
from compress.training.exit_start import network_with_exits
from compress.training.processes import gathered, is_main_process, resolve_device
from compress.training.transfer import build_student

__all__ = [
    "Table",
    "check_networks",
    "check_recipe",
    "read_tables",
    "run_recipe",
    "run_recipes",
    "validate_recipe",
]

CLASSES = 10  # of a network that is built to look at its layers alone
TRAINING = frozenset({"distil", "exits", "finetune", "train"})  # what several processes share


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a `compare` step ended with, as text and as JSON values."""

    text: str
    content: dict[str, Any]


def run_recipe(
    recipe: Recipe, run_dir: Path, *, fresh: bool = False, progress: bool = True
) -> dict[str, Outcome]:
    """Run what is not done yet of a recipe; the resolved recipe is written beside the results.

    Raises:
        CompressError: a step failed, or an option does not fit the data; finished steps are kept.
    """
    return run_recipes({run_dir: recipe}, fresh=fresh, progress=progress)[run_dir]


def run_recipes(
    recipes: Mapping[Path, Recipe],
    *,
    fresh: bool = False,
    progress: bool = True,
    jobs: int = 1,
    slurm: Mapping[str, Any] | None = None,
) -> dict[Path, dict[str, Outcome]]:
    """Run what is not done yet of several recipes, or of one with several seeds.

    All are checked before any starts. Under `accelerate launch` the processes train together, and
    the main one does the rest; the others return nothing.

    Args:
        recipes: by the folder of the run.
        fresh: run every step again.
        progress: show bars, where there is one process.
        jobs: tasks that run at a time, in processes of their own where it is above 1.
        slurm: settings for jobs of a Slurm cluster, see `compress.recipe.jobs.slurm_jobs`.

    Raises:
        CompressError: a step failed, or an option does not fit the data; finished steps are kept.
    """
    apart = jobs > 1 or slurm is not None
    if apart and _is_launched():
        raise UserInputError(
            "--jobs was given under a launcher of several processes; expected one or the other"
        )
    for folder in recipes:
        check_run_folder(folder)
    data = {folder: check_recipe(recipe) for folder, recipe in recipes.items()}
    if apart:
        return _run_apart(recipes, data, jobs=jobs, slurm=slurm, fresh=fresh)
    return {
        folder: _run_here(recipe, data[folder], folder, fresh=fresh, progress=progress)
        for folder, recipe in recipes.items()
    }


def check_recipe(recipe: Recipe) -> ImageData:
    """Check all of a recipe that can be checked before anything runs, and return its data.

    Raises:
        UserInputError: a step has nothing to work on, the data are not there or damaged, a network
            cannot be built, exits stand behind blocks that it does not have, or a pattern of
            layers matches none.
    """
    plan_tasks(recipe)
    data = recipe_data(recipe)
    side = data.preprocessing.size
    check_networks(recipe, num_classes=len(data.classes), image_size=side)
    return data


def validate_recipe(recipe: Recipe) -> list[Task]:
    """Check a recipe as far as that goes without its data, and return its tasks.

    Raises:
        CompressError: see `check_recipe`.
    """
    tasks = plan_tasks(recipe)
    if recipe.image_size is not None:  # else the data have the say
        check_networks(recipe, num_classes=CLASSES, image_size=recipe.image_size)
    return tasks


def check_networks(recipe: Recipe, *, num_classes: int, image_size: int | tuple[int, int]) -> None:
    """Check that the networks of a recipe can be built, and that layers are named that they have.

    Raises:
        CompressError: see `check_recipe`.
    """
    for chain, steps in recipe.checked_chains().items():
        networks: list[nn.Module] = []
        for number, step in enumerate(steps, start=1):
            with _told_of(f"{chain} step {number} ({step.kind})".strip()):
                begun = began_with(step, recipe)
                if begun is not None:
                    networks.append(begun.model)
                elif step.kind in ("train", "distil"):
                    networks.append(_built(step, num_classes, image_size))
                _check_layers(step, networks, image_size)


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    try:
        yield
    except CompressError as err:
        raise type(err)(f"{where}: {err}") from err


def _built(step: Step, num_classes: int, image_size: int | tuple[int, int]) -> nn.Module:
    settings = dict(step.options.model)
    spec = f"{settings.pop('arch')}:{json.dumps(settings)}"
    with torch.device("meta"):  # shapes alone
        return build_student(spec, num_classes=num_classes, image_size=image_size)


def _check_layers(step: Step, networks: list[nn.Module], image_size: int | tuple[int, int]) -> None:
    if step.kind == "slim":
        kinds = resolve_kinds(networks[0], step.options.groups)
        if step.options.ignore:
            scaled = with_scales(networks[0], kinds)
            groups = scaled.channel_groups() if isinstance(scaled, Slimmable) else []
            matching([group.name for group in groups], step.options.ignore)
    elif step.kind == "exits":
        rows, columns = (image_size,) * 2 if isinstance(image_size, int) else image_size
        for network in networks:
            image = torch.zeros(1, input_channels(network), rows, columns)
            options = step.options
            network_with_exits(network, options.positions, image, head=options.head, seed=0)


def _run_here(
    recipe: Recipe, data: ImageData, run_dir: Path, *, fresh: bool, progress: bool
) -> dict[str, Outcome]:
    work = work_of(recipe, data, progress=progress)
    with _together(work) as (shared, leads):
        if not leads:
            return {}
        return run_tasks(
            plan_tasks(recipe),
            shared,
            run_dir,
            identity=_identity(recipe, data),
            recipe_json=_record(recipe),
            fresh=fresh,
        )


def _run_apart(
    recipes: Mapping[Path, Recipe],
    data: Mapping[Path, ImageData],
    *,
    jobs: int,
    slurm: Mapping[str, Any] | None,
    fresh: bool,
) -> dict[Path, dict[str, Outcome]]:
    runs = [
        Run(
            tasks=plan_tasks(recipe),
            load_work=functools.partial(_loaded_work, recipe.model_dump_json()),
            folder=folder,
            identity=_identity(recipe, data[folder]),
            recipe_json=_record(recipe),
        )
        for folder, recipe in recipes.items()
    ]
    if slurm is not None:
        executor = slurm_jobs(runs[0].folder / ".slurm", slurm)
        outcomes = run_side_by_side(runs, executor, jobs=jobs, threads=None, fresh=fresh)
    else:
        with local_processes(jobs) as executor:
            threads = torch.get_num_threads()
            outcomes = run_side_by_side(runs, executor, jobs=jobs, threads=threads, fresh=fresh)
    return dict(zip(recipes, outcomes, strict=True))


def _record(recipe: Recipe) -> str:
    return recipe.model_dump_json(indent=2) + "\n"


def _identity(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    return {"data_sha256": data.sha256, "seed": recipe.seed}


@functools.lru_cache(maxsize=1)  # a process that works for several tasks reads the data once
def _loaded_work(recipe_json: str) -> Mapping[str, Work]:
    recipe = Recipe.model_validate_json(recipe_json)
    data = recipe_data(recipe)
    return work_of(recipe, data, progress=False)


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def _together(work: Mapping[str, Work]) -> Iterator[tuple[Mapping[str, Work], bool]]:
    """Give the work with which a launch of several processes runs, and whether this one leads.

    The main process leads: it plans, and calls the others to each task that trains. They have
    followed to the end when the block begins for them.
    """
    if not _is_launched():
        yield work, True
        return
    utils = require("accelerate.utils", "running in several processes")
    _join_processes()
    if not is_main_process():
        _follow(work, utils)
        yield work, False
        return
    try:
        yield {kind: _called(kind, do, utils) for kind, do in work.items()}, True
    finally:
        utils.broadcast_object_list([None])


def _called(kind: str, do: Work, utils: Any) -> Work:
    if kind not in TRAINING:
        return do

    def with_all(context: Context) -> dict[str, Any]:
        utils.broadcast_object_list([context])
        try:
            return do(context)
        finally:
            gathered(None)  # nobody writes any more when the files of the task are recorded

    return with_all


def _follow(work: Mapping[str, Work], utils: Any) -> None:
    while True:
        called: list[Any] = [None]
        utils.broadcast_object_list(called)
        if called[0] is None:
            return
        try:
            work[called[0].task.kind](called[0])
        except CompressError:
            pass  # the main process meets it too, and tells it
        finally:
            gathered(None)


def _join_processes() -> None:
    accelerate = require("accelerate", "running in several processes")
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    on_cpu = forced or resolve_device(None).type == "cpu"
    # The others wait for as long as the main process works alone.
    accelerate.PartialState(cpu=on_cpu, timeout=timedelta(days=30))


def read_tables(outcomes: Mapping[str, Outcome]) -> dict[str, Table]:
    """Return the tables of a run, by the name of their task, in the order of the recipe."""
    tables = {}
    for name, outcome in outcomes.items():
        if outcome.task.kind == "compare":
            path = outcome.path("table")
            tables[name] = Table(
                text=path.read_text(encoding="utf-8").rstrip("\n"),
                content=json.loads(path.with_suffix(".json").read_text(encoding="utf-8")),
            )
    return tables
