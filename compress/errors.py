"""The errors that a user can meet, each with the exit code that its door ends with.

A message is one sentence or two: what was wrong, what was received, what was expected, what to do.

=====  ==========================================================
code   meaning
=====  ==========================================================
0      done
1      an error of ours (anything that is not a `CompressError`)
2      wrong usage of the command line (argparse)
3      bad input, or a model that cannot be handled
4      a tool or package is missing or of the wrong version
5      the result misses a quality bar that was asked for
130    interrupted from the keyboard
=====  ==========================================================
"""

__all__ = [
    "AccuracyError",
    "CompressError",
    "ToolchainError",
    "UnsupportedModelError",
    "UserInputError",
]


class CompressError(Exception):
    """The root of every error that is told to the user without a traceback."""

    exit_code = 1


class UserInputError(CompressError):
    """A file, option or value that was given cannot be used."""

    exit_code = 3


class UnsupportedModelError(CompressError):
    """The model is readable, but not one that the asked step can work on."""

    exit_code = 3


class ToolchainError(CompressError):
    """A package, device or external tool is missing or does not fit."""

    exit_code = 4


class AccuracyError(CompressError):
    """The work was done, but its result misses a stated quality bar."""

    exit_code = 5
