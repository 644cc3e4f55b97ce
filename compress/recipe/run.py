"""Run a recipe from its file to its table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.data.spec import load_data
from compress.files import write_text
from compress.recipe.engine import Outcome, run_tasks
from compress.recipe.plan import plan_tasks
from compress.recipe.schema import Recipe
from compress.recipe.tasks import work_of

__all__ = ["Table", "read_tables", "run_recipe"]


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
    tasks = plan_tasks(recipe)
    data = load_data(recipe.data, image_size=recipe.image_size, seed=recipe.seed)
    write_text(run_dir / "recipe.json", recipe.model_dump_json(indent=2) + "\n")
    identity = {"data_sha256": data.sha256, "seed": recipe.seed}
    work = work_of(recipe, data, progress=progress)
    return run_tasks(tasks, work, run_dir, identity=identity, fresh=fresh)


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
