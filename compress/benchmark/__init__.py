"""Networks, bundles and foreign checkpoints timed side by side, and what their energy is.

`subject` is what can be timed, `kinds` and `lineup` open it, `timing`, `memory`, `energy` and
`profiles` measure, `run` does it in turn, `report` tells, `job` is all of it; `__main__` is the
door.
"""

__all__ = ["main"]


def main(argv: "list[str] | None" = None) -> int:
    """Run the door; return its exit code."""
    from compress.benchmark.__main__ import main as door

    return door(argv)
