"""Write a page and a model card about one finished run, or about several side by side."""

import argparse
import sys
from pathlib import Path

from compress.cli import HelpFormatter, add_common_options, print_json, run_door

__all__ = ["main"]

EPILOG = """examples:
  python -m compress report runs/quickstart
  python -m compress report runs/quickstart runs/short -o runs/compared

report.html opens offline in any browser, light or dark; MODEL_CARD.md holds the same tables
"""
SCHEMA = "compress.report/1"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    words = "folder of a run, as python -m compress run leaves it"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=words)
    words = "folder of both files (that of the only run; report for several)"
    parser.add_argument("-o", "--output", type=Path, help=words)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    from compress.report.collect import collect
    from compress.report.write import write_report

    output = options.output or (options.runs[0] if len(options.runs) == 1 else Path("report"))
    runs = [collect(folder) for folder in options.runs]
    files = write_report(runs, output)
    notes = [note for run in runs for note in run.notes]
    if options.json:
        found = {"html": str(files.html), "card": str(files.card), "notes": notes}
        print_json({"schema": SCHEMA, **found})
        return 0
    for note in () if options.quiet else notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"report: {files.html}\nmodel card: {files.card}")
    return 0


def main(argv: "list[str] | None" = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
