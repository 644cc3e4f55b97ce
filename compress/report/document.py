"""Lay facts out: one run in full, or several, first beside each other and then one by one."""

from collections.abc import Iterable, Sequence

from compress.report.comparison import comparison_table, runs_table
from compress.report.facts import Chain, RunFacts
from compress.report.figures import (
    accuracy_figure,
    curve_figures,
    exits_figure,
    front_figure,
    gamma_figure,
    profile_figure,
    sweep_figure,
    widths_figure,
)
from compress.report.layout import Document, Figure, Section, Table
from compress.report.summary import summary, tiles
from compress.report.tables import (
    dispatch_table,
    environment_table,
    exits_table,
    latency_table,
    parity_table,
    plan_table,
    profile_table,
)

__all__ = ["document_of", "run_names"]

Part = tuple[str, tuple[Section, ...]]  # its title, and what is in it
TRAINED = ("train", "distil", "finetune")


def document_of(runs: Sequence[RunFacts]) -> Document:
    """Return the page about runs.

    Args:
        runs: at least one; several are compared with the first.
    """
    names = run_names(runs)
    if len(runs) == 1:
        (run,) = runs
        return Document(
            title=run.name,
            subtitle=_subtitle(run),
            summary=tuple(summary(run)),
            tiles=tuple(tiles(run)),
            parts=tuple(_parts(run)),
            notes=run.notes,
        )
    together = Section(title="", tables=_tables([runs_table(runs, names)]))
    parts: list[Part] = [("", (together,))] if together else []
    for name, run in zip(names, runs, strict=True):
        own = tuple(summary(run))
        words = Section(title="In short", words=own) if own else None
        parts.append((name, (words,) if words else ()))
        parts += [(f"{name} / {title}" if title else "", part) for title, part in _parts(run)]
    return Document(
        title=f"{len(runs)} runs compared",
        subtitle=" · ".join(names),
        summary=(),
        tiles=(),
        parts=tuple(part for part in parts if part[1]),
        notes=tuple(
            f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes
        ),
    )


def run_names(runs: Sequence[RunFacts]) -> list[str]:
    """Return a name for each run that no other has: of its recipe, its folder, or with a number."""
    for names in ([run.name for run in runs], [run.folder for run in runs]):
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {run.folder}" for number, run in enumerate(runs, start=1)]


def _parts(run: RunFacts) -> list[Part]:
    """Return the chains of a run and, last, what it ran on."""
    named = [(chain.name, tuple(filter(None, _sections(chain)))) for chain in run.chains]
    found = [(title, sections) for title, sections in named if sections]
    tables = [environment_table(each, _where(each.steps, run)) for each in run.environments]
    if tables:
        found.append(("Versions and hardware", (Section(title="", tables=tuple(tables)),)))
    return found


def _sections(chain: Chain) -> Iterable[Section]:
    yield Section(
        title="Result",
        tables=_tables([comparison_table(chain)]),
        figures=_figures([accuracy_figure(chain)]),
    )
    yield Section(
        title="Slimming",
        figures=_figures(
            [
                *(widths_figure(slim) for slim in chain.slims),
                *(gamma_figure(slim) for slim in chain.slims),
            ]
        ),
    )
    yield Section(
        title="Early exits",
        tables=_tables([plan_table(chain.plans), *map(exits_table, chain.exits)]),
        figures=_figures(
            [
                *(draw(each) for each in chain.exits for draw in (exits_figure, sweep_figure)),
                *map(front_figure, chain.fronts),
            ]
        ),
    )
    yield Section(
        title="Deployment",
        tables=_tables(
            [
                latency_table(chain.networks),
                parity_table(chain.parities),
                dispatch_table(chain.dispatches),
            ]
        ),
        words=() if chain.energy is None else (f"No energy: {chain.energy.reason}",),
    )
    yield Section(
        title="Operations",
        tables=_tables(map(profile_table, chain.profiles)),
        figures=_figures(map(profile_figure, chain.profiles)),
    )
    networks = [curve for curve in chain.curves if curve.kind in TRAINED]
    exits = [curve for curve in chain.curves if curve.kind not in TRAINED]
    yield Section(title="Training", figures=tuple(curve_figures(networks)))
    yield Section(title="Training of exits", figures=tuple(curve_figures(exits)))


def _subtitle(run: RunFacts) -> str:
    return " · ".join(f"{name} {value}" for name, value in run.settings)


def _where(steps: Sequence[str], run: RunFacts) -> str:
    """Return the steps of an environment, where there are others."""
    if len(run.environments) == 1:
        return "All steps"
    return f"{', '.join(steps[:4])}{f' and {len(steps) - 4} more' if len(steps) > 4 else ''}"


def _tables(found: Iterable[Table | None]) -> tuple[Table, ...]:
    return tuple(table for table in found if table is not None)


def _figures(found: Iterable[Figure | None]) -> tuple[Figure, ...]:
    return tuple(figure for figure in found if figure is not None)
