"""What a page is made of: sections of words, tables and figures, whatever it is written as."""

from dataclasses import dataclass

__all__ = ["Cell", "Document", "Figure", "Section", "Table", "Tile"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Attributes:
        words: as they are shown.
        value: the number that they are rounded from, as JSON writes it; "" for words.
        note: smaller, behind them: the change against the baseline.
        better: whether that change is welcome; None where it is neither.
    """

    words: str
    value: str = ""
    note: str = ""
    better: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; every row has a cell for each heading."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing.

    Attributes:
        title: above it.
        svg: its text, already safe inside HTML.
        picture: an address that holds a picture in itself, where there is no `svg`.
        note: below it.
        legend: colours by number, and names.
    """

    title: str
    svg: str = ""
    picture: str = ""
    note: str = ""
    legend: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """Part of a page."""

    title: str
    words: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.words or self.tables or self.figures)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the few large numbers at the top."""

    label: str
    number: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """The whole page.

    Attributes:
        title: of the page.
        subtitle: what the figures are of.
        summary: sentences.
        tiles: large numbers.
        parts: titles of runs and chains, each with its sections.
        notes: sentences on what is missing.
    """

    title: str
    subtitle: str
    summary: tuple[str, ...]
    tiles: tuple[Tile, ...]
    parts: tuple[tuple[str, tuple[Section, ...]], ...]
    notes: tuple[str, ...]
