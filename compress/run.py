"""Run a recipe: a chain of steps from one YAML file, which goes on where it was stopped.

list | show NAME | validate FILE ... | copy NAME [DEST] in place of a recipe: the recipes that are
shipped, by name; what one holds; whether files are valid; a copy to change.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli import HelpFormatter, add_common_options, parse_numbers, print_json, run_door
from compress.door_options import DATA
from compress.errors import CompressError, UserInputError

if TYPE_CHECKING:
    from compress.recipe.schema import Recipe

__all__ = ["main"]

EPILOG = """examples:
  python -m compress run list
  python -m compress run recipes/quickstart.yaml
  python -m compress run quickstart --set finetune.epochs=3 --set seed=1 -o runs/short
  python -m compress run quickstart --jobs 2 --seeds 0,1
  python -m compress run copy quickstart mine.yaml
  accelerate launch -m compress run quickstart      (all processes share each step that trains)

results lie in runs/<name of the recipe>, one folder a step; what is unchanged is not run again
"""


def _parser() -> argparse.ArgumentParser:
    parser = _new_parser("run", __doc__ or "", epilog=EPILOG)
    add = parser.add_argument
    add("recipe", help="YAML file, or the name of a shipped recipe")
    add("-o", "--output", type=Path, help="folder of the run (runs/<name of the recipe>)")
    _add_overrides(parser)
    add("--data", metavar="SPEC", help=f"take other data: {DATA}")
    add("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    again = parser.add_mutually_exclusive_group()
    words = "go on with a run that is there, which is also the default; an error where none is"
    again.add_argument("--resume", action="store_true", help=words)
    again.add_argument("--fresh", action="store_true", help="run every step again")
    group = parser.add_argument_group("several processes")
    group.add_argument("--jobs", type=int, default=1, metavar="N", help="steps run at a time")
    group.add_argument("--seeds", metavar="N,N", help="one run a seed, in folders seed-N")
    words = "submit the steps as jobs, such as partition=gpu,timeout_min=60; needs submitit"
    group.add_argument("--slurm", metavar="KEY=VALUE,…", help=words)
    return parser


def _new_parser(words: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m compress {words}",
        description=description,
        epilog=epilog,
        formatter_class=HelpFormatter,
    )
    add_common_options(parser)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    words = "change an option, such as finetune.epochs=3; may be repeated"
    form: dict[str, Any] = {"metavar": "STEP.OPTION=VALUE", "dest": "overrides", "help": words}
    parser.add_argument("--set", action="append", default=[], **form)


def _run(options: argparse.Namespace) -> int:
    from compress.recipe.plan import plan_tasks
    from compress.recipe.run import check_recipe, run_recipes
    from compress.training.processes import is_main_process

    recipe = _read(options)
    run_dir = options.output or Path("runs") / recipe.name
    seeds = parse_numbers(options.seeds, "--seeds", int)
    recipes = {
        run_dir if seeds is None else run_dir / f"seed-{seed}": recipe.with_seed(seed)
        for seed in seeds or (recipe.seed,)
    }
    _check_run(options, list(recipes))
    if options.dry_run:
        for each in recipes.values():
            check_recipe(each)
        plan = [asdict(task) for task in plan_tasks(recipe)]
        print_json({"recipe": recipe.name, "output": str(run_dir), "plan": plan})
        return 0
    outcomes = run_recipes(
        recipes,
        fresh=options.fresh,
        progress=not options.quiet,
        jobs=options.jobs,
        slurm=None if options.slurm is None else _settings(options.slurm),
    )
    if is_main_process():
        _tell(recipe.name, run_dir, outcomes, as_json=options.json)
    return 0


def _read(options: argparse.Namespace) -> "Recipe":
    from compress.recipe.catalogue import find_recipe
    from compress.recipe.schema import read_recipe

    data = getattr(options, "data", None)
    overrides = [*options.overrides, *([f"data={data}"] if data else [])]
    return read_recipe(find_recipe(options.recipe), overrides)


def _check_run(options: argparse.Namespace, folders: list[Path]) -> None:
    if options.jobs < 1:
        raise UserInputError(f"--jobs is {options.jobs}; expected at least 1")
    missing = [folder for folder in folders if not (folder / "recipe.json").is_file()]
    if options.resume and missing:
        raise UserInputError(
            f"--resume: {missing[0]} holds no run; check -o, or leave --resume out"
        )


def _settings(text: str) -> dict[str, Any]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise UserInputError(f"--slurm is {text!r}; expected KEY=VALUE,KEY=VALUE")
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}


def _tell(name: str, run_dir: Path, outcomes: Mapping[Path, Any], *, as_json: bool) -> None:
    from compress.recipe.run import read_tables

    tables = {
        (folder.relative_to(run_dir) / task).as_posix(): table
        for folder, done in outcomes.items()
        for task, table in read_tables(done).items()
    }
    if as_json:
        found = {task: table.content for task, table in tables.items()}
        print_json({"recipe": name, "output": str(run_dir), "tables": found})
        return
    several = len(outcomes) > 1
    for task, table in tables.items():
        print(f"{task}\n{table.text}\n" if several else f"{table.text}\n")
    print(f"results: {run_dir}")
    for done in outcomes.values():
        for outcome in done.values():
            if outcome.task.kind == "report":
                print(f"report:  {outcome.path('html')}")


def _list(options: argparse.Namespace) -> int:
    from compress.recipe.catalogue import shipped_recipes

    found = shipped_recipes()
    if options.json:
        print_json({"recipes": [{"name": r.name, "path": str(r.path), **r.header} for r in found]})
        return 0
    for recipe in found:
        print(recipe.name)
        for field in ("Purpose", "Data", "Time"):
            words = f"{field:8} {recipe.header.get(field, 'not told')}"
            print(textwrap.fill(words, 96, initial_indent="  ", subsequent_indent=" " * 11))
    return 0


def _show(options: argparse.Namespace) -> int:
    from compress.recipe.catalogue import find_recipe
    from compress.recipe.plan import plan_tasks

    recipe = _read(options)  # what is not valid is not shown as if it were
    if options.json:
        plan = [asdict(task) for task in plan_tasks(recipe)]
        print_json({"recipe": recipe.model_dump(mode="json"), "plan": plan})
    else:
        print(find_recipe(options.recipe).read_text(encoding="utf-8"), end="")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from compress.recipe.run import validate_recipe

    told, code = [], 0
    for name in options.recipes:
        options.recipe = name
        try:
            tasks = validate_recipe(_read(options))
            told.append({"recipe": name, "valid": True, "tasks": len(tasks)})
        except CompressError as err:
            told.append({"recipe": name, "valid": False, "problem": str(err)})
            code = err.exit_code
    if options.json:
        print_json({"recipes": told})
    for each in () if options.json else told:
        print(f"{each['recipe']}: {each.get('problem') or 'valid, {tasks} tasks'.format(**each)}")
    return code


def _copy(options: argparse.Namespace) -> int:
    from compress.recipe.catalogue import copy_recipe

    copy = copy_recipe(options.recipe, options.destination, force=options.force)
    if options.json:
        print_json({"recipe": options.recipe, "copy": str(copy)})
    else:
        print(f"copied to {copy}; run it with: python -m compress run {copy}")
    return 0


def _list_parser() -> argparse.ArgumentParser:
    return _new_parser("run list", "List the recipes that are shipped.")


def _show_parser() -> argparse.ArgumentParser:
    parser = _new_parser("run show", "Print a recipe; with --json what it comes to, and its plan.")
    parser.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    _add_overrides(parser)
    return parser


def _validate_parser() -> argparse.ArgumentParser:
    words = "Check recipes as far as that goes without their data; --dry-run checks those too."
    parser = _new_parser("run validate", words)
    parser.add_argument("recipes", nargs="+", help="YAML files, or names of shipped recipes")
    _add_overrides(parser)
    return parser


def _copy_parser() -> argparse.ArgumentParser:
    parser = _new_parser("run copy", "Copy a recipe to change it.")
    parser.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    parser.add_argument("destination", nargs="?", type=Path, help="file or folder (this folder)")
    parser.add_argument("--force", action="store_true", help="replace what stands there")
    return parser


# What may stand in place of a recipe; a file of such a name is given as ./list
VERBS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[..., int]]] = {
    "list": (_list_parser, _list),
    "show": (_show_parser, _show),
    "validate": (_validate_parser, _validate),
    "copy": (_copy_parser, _copy),
}


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] in VERBS:
        parser, work = VERBS[given[0]]
        return run_door(parser(), work, given[1:])
    return run_door(_parser(), _run, given)


if __name__ == "__main__":
    sys.exit(main())
