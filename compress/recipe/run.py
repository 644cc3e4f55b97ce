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

__all__ = ["Table", "read_table", "run_recipe"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The last step's table, as text and as JSON values; empty for a recipe without one."""

    text: str
    content: dict[str, Any] | None


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


def read_table(outcomes: Mapping[str, Outcome]) -> Table:
    """Return the table of a run."""
    outcome = outcomes.get("compare")
    if outcome is None:
        return Table(text="the recipe has no `compare` step, so there is no table", content=None)
    path = outcome.path("table")
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Table(text=path.read_text(encoding="utf-8").rstrip("\n"), content=content)
