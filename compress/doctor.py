"""Say what this machine has, and what each missing part would make possible."""

from __future__ import annotations

import argparse
import sys

from compress.cli import HelpFormatter, add_common_options, print_report, run_door

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.doctor
  python -m compress.doctor --json > machine.json
  python -m compress.doctor --try-imports

versions are those that pip wrote down; CUDA and TensorRT are imported in processes of their own, so
one that is broken harms nothing. What is missing is no error: the exit code is 0
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.doctor",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    words = "import every package in a process of its own, to find broken ones; half a minute"
    parser.add_argument("--try-imports", action="store_true", help=words)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    from compress.measure.doctor import diagnose

    found = diagnose(tries_all=options.try_imports)
    print_report(found, as_json=options.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
