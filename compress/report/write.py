"""Put the page and the model card on the disk, each whole or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.files import write_text
from compress.report.card import render_card
from compress.report.facts import RunFacts
from compress.report.page import render_html

__all__ = ["ReportFiles", "write_report"]


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the page and the model card are."""

    html: Path
    card: Path


def write_report(runs: Sequence[RunFacts], output: Path) -> ReportFiles:
    """Write `report.html` and `MODEL_CARD.md`, over those of an earlier call.

    Args:
        runs: at least one; several are compared with the first.
        output: folder, made where it is missing.

    Raises:
        UserInputError: the folder cannot be written to.
        ToolchainError: Jinja2 is not installed.
    """
    files = ReportFiles(html=Path(output) / "report.html", card=Path(output) / "MODEL_CARD.md")
    page, card = render_html(runs), render_card(runs)  # both, before either is written
    write_text(files.html, page)
    write_text(files.card, card)
    return files
