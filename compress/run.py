"""Run a recipe: a chain of steps from one YAML file, which goes on where it was stopped."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from compress.cli import HelpFormatter, add_common_options, print_json, run_door

__all__ = ["main"]

EPILOG = """examples:
  python -m compress run recipes/quickstart.yaml
  python -m compress run recipes/quickstart.yaml --set finetune.epochs=3 --set seed=1 -o runs/short

results lie in runs/<name of the recipe>, one folder a step; what is unchanged is not run again
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress run",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("recipe", type=Path, help="YAML file")
    add("-o", "--output", type=Path, help="folder of the run (runs/<name of the recipe>)")
    words = "change an option, such as finetune.epochs=3; may be repeated"
    add(
        "--set",
        action="append",
        default=[],
        metavar="STEP.OPTION=VALUE",
        dest="overrides",
        help=words,
    )
    add("--data", metavar="SPEC", help="take other data: digits, cifar10:DIR or folder:DIR")
    add("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    add("--fresh", action="store_true", help="run every step again")
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    from compress.recipe.run import read_tables, run_recipe
    from compress.recipe.schema import read_recipe

    overrides = [*options.overrides, *([f"data={options.data}"] if options.data else [])]
    recipe = read_recipe(options.recipe, overrides)
    run_dir = options.output or Path("runs") / recipe.name
    if options.dry_run:
        from compress.recipe.plan import plan_tasks

        plan = [asdict(task) for task in plan_tasks(recipe)]
        print_json({"recipe": recipe.name, "output": str(run_dir), "plan": plan})
        return 0
    outcomes = run_recipe(recipe, run_dir, fresh=options.fresh, progress=not options.quiet)
    tables = read_tables(outcomes)
    if options.json:
        found = {name: table.content for name, table in tables.items()}
        print_json({"recipe": recipe.name, "output": str(run_dir), "tables": found})
    else:
        print("\n\n".join(table.text for table in tables.values()))
        print(f"results: {run_dir}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
