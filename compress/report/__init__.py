"""One page and one model card about finished runs, from the JSON that their steps wrote.

`collect` reads a run folder into facts, `sections` lays facts out as words, tables and figures,
`page` and `card` write these as HTML and Markdown, `write` puts both on the disk. What a step did
not write is left out; nothing is measured or computed anew but shares and differences.
"""

__all__ = ["main"]


def main(argv: "list[str] | None" = None) -> int:
    """Run the door; return its exit code."""
    from compress.report.__main__ import main as door

    return door(argv)
