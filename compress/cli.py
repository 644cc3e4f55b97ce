"""What every door (`python -m compress.<verb>`) shares: common options, error to exit code, output.

Results go to stdout, progress and notes to stderr. `--json` prints exactly one object on stdout.
What a console has no character for is shown as "?", and never an error after the work is done.
"""

import argparse
import json
import logging
import os
import re
import sys
from typing import Any, Callable, List, Optional, Tuple

from compress.errors import CompressError, ToolchainError, UserInputError, disk_error

__all__ = [
    "PROGRAM",
    "HelpFormatter",
    "add_common_options",
    "one_or_each",
    "parse_numbers",
    "print_json",
    "print_report",
    "printable",
    "run_door",
]

PROGRAM = "early-exit"  # what an installation calls `python -m compress`


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults where there are some, and keep the examples of the epilog as they stand."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        if action.default is None or action.default is False or action.default in ([], ()):
            return action.help  # "(default: None)" tells nobody anything
        return super()._get_help_string(action)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that mean the same at every door."""
    group = parser.add_argument_group("common options")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    group.add_argument("-v", "--verbose", action="store_true", help="tell more on stderr")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no notes")


def parse_numbers(text: Optional[str], option: str, kind: type) -> Optional[Tuple[Any, ...]]:
    """Return the numbers of "7,8,9"; None of None.

    Raises:
        UserInputError: there is something else between the commas.
    """
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as err:
        raise UserInputError(f"{option} is {text!r}; expected numbers, such as 7,8,9") from err


def one_or_each(numbers: Optional[Tuple[Any, ...]]) -> Any:
    """Return the number of (0.8,), which means all exits alike; what else was given, as it is."""
    return numbers[0] if numbers is not None and len(numbers) == 1 else numbers


def print_report(report: Any, *, as_json: bool) -> None:
    """Print a report on stdout, by its `to_dict` or its `to_text`."""
    if as_json:
        print_json(report.to_dict())
    else:
        print(report.to_text())


def run_door(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], Optional[int]],
    argv: Optional[List[str]] = None,
) -> int:
    """Parse, do the work, and turn what went wrong into a message and an exit code.

    Returns:
        What `work` returned (None counts as 0), or the exit code of the error.
    """
    for stream in (sys.stdout, sys.stderr):  # before anything is printed, the help too
        _replace_unknown_characters(stream)
    _name_as_typed(parser)
    options = parser.parse_args(argv)
    _set_up_logging(options)
    try:
        return work(options) or 0
    except CompressError as err:
        print(f"{parser.prog}: error: {printable(str(err))}", file=sys.stderr)
        return err.exit_code
    except ModuleNotFoundError as err:
        missing = (err.name or "").partition(".")[0]
        if missing == "compress":  # an error of ours, to be seen whole
            raise
        print(
            f"{parser.prog}: error: {missing} is not installed; this command needs the toolkit: "
            "pip install 'early-exit-compress[toolkit]'",
            file=sys.stderr,
        )
        return ToolchainError.exit_code
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as err:  # the last resort: what writes files tells more
        told = disk_error(err, err.filename)
        if told is None:
            raise
        print(f"{parser.prog}: error: {told}", file=sys.stderr)
        return told.exit_code


def _name_as_typed(parser: argparse.ArgumentParser) -> None:
    """Call the program in help and errors as the user did: by its installed name, or by Python."""
    if os.path.basename(sys.argv[0]) != PROGRAM:
        return
    parser.prog = _as_typed(parser.prog)
    parser.epilog = parser.epilog and _as_typed(parser.epilog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _name_as_typed(each)


def _as_typed(text: str) -> str:
    return re.sub(r"python -m compress[. ](?=\w)", f"{PROGRAM} ", text)


def printable(text: str) -> str:
    r"""Return text in which what a terminal would obey is escaped, such as names of a stranger.

    >>> print(printable("a" + chr(27) + "[2J"))
    a\x1b[2J
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def print_json(value: Any) -> None:
    """Print one JSON object on stdout. NaN and infinity are refused: they are not JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))


def _replace_unknown_characters(stream: Any) -> None:
    """Let a stream show "?" where its encoding has no such character.

    `surrogateescape` stays where all but halves of characters can be encoded: it gives names of
    files back byte by byte.
    """
    if not hasattr(stream, "reconfigure"):  # it was replaced, as tests and notebooks do
        return
    is_unicode = (stream.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")
    if stream.errors == "strict" or (stream.errors == "surrogateescape" and not is_unicode):
        stream.reconfigure(errors="replace")


def _set_up_logging(options: argparse.Namespace) -> None:
    level = logging.INFO
    if getattr(options, "verbose", False):
        level = logging.DEBUG
    if getattr(options, "quiet", False):
        level = logging.ERROR
        os.environ["TQDM_DISABLE"] = "1"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("compress").setLevel(level)
