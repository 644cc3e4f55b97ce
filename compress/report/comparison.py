"""The final comparison: every network of a chain, or one network in several runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.report.facts import Chain, Network, RunFacts
from compress.report.layout import Cell, Table
from compress.report.numbers import (
    change_text,
    count_text,
    ms_text,
    number_text,
    percent_text,
    points_text,
)
from compress.report.svg import data_number

__all__ = ["comparison_table", "runs_table", "runtime_words"]

RUNTIMES = {
    "torch": "torch",
    "onnx": "ONNX Runtime",
    "bundle": "Bundle",
    "benchmark": "Benchmark",
}
EMPTY = Cell(words="–")
Compared = tuple[Cell, Network, Network | None]  # what stands first, the network, its baseline


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One figure of a network, as it is shown.

    Attributes:
        heading: of the column.
        value: of a network.
        words: of a value.
        change: words of a value and that of the baseline; None where no difference is told.
        more_is_better: what makes a change welcome.
    """

    heading: str
    value: Callable[[Network], float | None]
    words: Callable[[float], str]
    change: Callable[[float, float], str] | None = None
    more_is_better: bool = False


def runtime_words(runtime: str) -> str:
    """Return what a runtime is called on a page."""
    return RUNTIMES.get(runtime, runtime)


def comparison_table(chain: Chain) -> Table | None:
    """Return the table of a chain, changes against its baseline; None where nothing is compared."""
    if not chain.networks:
        return None
    compared: list[Compared] = [
        (Cell(words=network.name), network, chain.baseline) for network in chain.networks
    ]
    return _table("Final comparison", ("Network",), compared, _note(chain.networks))


def runs_table(runs: Sequence[RunFacts], names: Sequence[str]) -> Table | None:
    """Return all networks of several runs, each beside its namesakes; None where there are none.

    Args:
        runs: the first is what the others are compared with.
        names: of the runs.
    """
    found: dict[tuple[str, str], list[tuple[str, Network]]] = {}
    for name, run in zip(names, runs, strict=True):
        for chain in run.chains:
            for network in chain.networks:
                found.setdefault((chain.name, network.name), []).append((name, network))
    compared: list[Compared] = []
    for (chain_name, network_name), group in found.items():
        title = f"{chain_name}: {network_name}" if chain_name else network_name
        compared += [(Cell(words=title, note=name), each, group[0][1]) for name, each in group]
    if not compared:
        return None
    note = "The run is named behind each network; changes are against the first run that has it."
    return _table("Runs side by side", ("Network and run",), compared, note)


def _columns(networks: Sequence[Network]) -> list[_Column]:
    runtimes = dict.fromkeys(each.runtime for network in networks for each in network.latencies)
    candidates = [
        _Column(heading="Channels removed", value=lambda n: n.true_ratio, words=_share),
        _Column(heading="Parameters", value=lambda n: n.params, words=count_text,
                change=change_text),
        _Column(heading="MACs", value=lambda n: n.macs, words=count_text, change=change_text),
        _Column(heading="Slimmed only", value=lambda n: n.acc1_slimmed, words=percent_text),
        _Column(heading="Accuracy", value=lambda n: n.acc1, words=percent_text, change=_points,
                more_is_better=True),
        _Column(heading="Threshold", value=lambda n: n.exit_threshold, words=number_text),
        *(_latency(runtime) for runtime in runtimes),
        _Column(heading="Energy", value=lambda n: n.energy_mj, words=_mj, change=change_text),
    ]  # fmt: skip
    told = [each for each in candidates if any(each.value(n) is not None for n in networks)]
    # What fine-tuning left alone would stand there twice.
    same = all(n.acc1_slimmed in (None, n.acc1) for n in networks)
    return [each for each in told if each.heading != "Slimmed only" or not same]


def _latency(runtime: str) -> _Column:
    return _Column(
        heading=f"{runtime_words(runtime)} latency",
        value=lambda network: network.latency_ms(runtime),
        words=ms_text,
        change=change_text,
    )


def _table(title: str, first: tuple[str, ...], compared: Sequence[Compared], note: str) -> Table:
    columns = _columns([network for _, network, _ in compared])
    rows = [
        (cell, *(_cell(column, network, base) for column in columns))
        for cell, network, base in compared
    ]
    head = (*first, *(column.heading for column in columns))
    return Table(title=title, head=head, rows=tuple(rows), note=note)


def _cell(column: _Column, network: Network, base: Network | None) -> Cell:
    value = column.value(network)
    if value is None:
        return EMPTY
    words, number = column.words(value), data_number(value)
    base_value = None if base is None or base is network else column.value(base)
    if column.change is None or base_value is None:
        return Cell(words=words, value=number)
    note = column.change(value, base_value)
    better = None if value == base_value else (value > base_value) == column.more_is_better
    return Cell(words=words, value=number, note=note, better=better)


def _note(networks: Sequence[Network]) -> str:
    counts = {each.test_images for each in networks if each.test_images}
    said = "Small figures are changes against the baseline."
    if any(each.latencies for each in networks):
        said += " Latency is the median time of one image."
    if any(each.exit_threshold is not None for each in networks):
        said += " Where images leave early, MACs and latency are those of an image on average."
    if len(counts) == 1:
        (images,) = counts
        said += f" Accuracy is of {images} test images: one of them is {100 / images:.2g} points."
    return said


def _share(value: float) -> str:
    return percent_text(100 * value, 1)


def _mj(value: float) -> str:
    return f"{value:.3g}\u00a0mJ"


def _points(value: float, base: float) -> str:
    return points_text(value - base)
