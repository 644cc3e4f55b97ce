"""A finished task of a run: its figures, and the report that its step wrote beside them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.report.values import read_lines, read_object

__all__ = ["TaskFiles"]

REPORTS = {"slim": "slim.report.json", "export": "export.report.json", "compare": "table.json"}


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """One task.

    Attributes:
        name: its folder below the run, as it can be shown.
        folder: that folder.
        chain: of the recipe, "" for the only one.
        kind: of work.
        network: that it worked on.
        figures: of done.json.
        notes: sentences on files that could not be read go here.
    """

    name: str
    folder: Path
    chain: str
    kind: str
    network: str
    figures: dict[str, Any]
    notes: list[str]

    @cached_property
    def report(self) -> dict[str, Any]:
        """What the step wrote beside its figures; the figures where it writes nothing else."""
        if self.kind not in REPORTS:
            return self.figures
        return self.read(REPORTS[self.kind])

    def read(self, name: str) -> dict[str, Any]:
        """Return the JSON object of a file of the task; {} where there is none."""
        return read_object(self.folder / name, f"{self.name}/{name}", self.notes)

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Return the JSON objects of a file with one a line."""
        return read_lines(self.folder / name, f"{self.name}/{name}", self.notes)
