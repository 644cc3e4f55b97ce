"""The model card: the same words and tables in Markdown, for the place where weights are kept."""

import re
from collections.abc import Iterator, Sequence

from compress.report.document import document_of
from compress.report.facts import RunFacts
from compress.report.layout import Cell, Document, Section, Table

__all__ = ["render_card"]

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&$@])")
LINKS = re.compile(r"(://|\bwww\.)", re.IGNORECASE)  # made of bare text by some readers
# What makes a list, a rule, or a heading of the line above where a line begins with it.
FIRST = re.compile(r"^(?:[-+](?=\s|$)|\d+[.)](?=\s|$)|[-=](?=[-=\s]*$))")
NARROW = "\u00a0"  # a space that belongs to a number
LIMITS = (
    "Accuracy holds for images like those it was counted on, latency and energy for the hardware "
    "and the versions below. The networks say nothing about images of other classes."
)


def render_card(runs: Sequence[RunFacts]) -> str:
    """Return the model card of runs; the same facts give the same text.

    Args:
        runs: at least one; several are compared with the first.
    """
    return "\n".join(_lines(document_of(runs))).rstrip("\n") + "\n"


def _lines(page: Document) -> Iterator[str]:
    yield from (f"# {_escaped(page.title)}", "")
    if page.subtitle:
        yield from (_escaped(page.subtitle), "")
    yield from _items(page.summary)
    yield from ("## Limits", "", LIMITS, "")
    yield from _items(page.notes)
    for title, sections in page.parts:
        told = [section for section in sections if section.words or section.tables]
        if title and told:
            yield from (f"## {_escaped(title)}", "")
        for section in told:
            yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield from _items(section.words)
    for table in section.tables:
        yield from (f"### {_escaped(table.title)}", "")
        yield from _table(table)


def _items(sentences: Sequence[str]) -> Iterator[str]:
    if sentences:
        yield from (f"- {_escaped(sentence)}" for sentence in sentences)
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield _row([_escaped(each) for each in table.head])
    yield _row([":--", *["--:"] * (len(table.head) - 1)])
    yield from (_row([_cell(cell) for cell in row]) for row in table.rows)
    yield ""
    if table.note:
        yield from (_escaped(table.note), "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return _escaped(f"{cell.words} ({cell.note})" if cell.note else cell.words)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in one line whatever it holds."""
    line = "".join(each if each.isprintable() or each == NARROW else " " for each in text)
    line = LINKS.sub(_without_link, SPECIAL.sub(r"\\\1", line.strip()))
    return FIRST.sub(_without_meaning, line)


def _without_link(found: re.Match[str]) -> str:
    return found[0].replace(":", "\\:").replace(".", "\\.")


def _without_meaning(found: re.Match[str]) -> str:
    return f"{found[0][:-1]}\\{found[0][-1]}"
