"""Figures in the wording of the published logs, so that they can be laid side by side.

One line differs on purpose. The logs print `total_GFLOPs=…G`, computed by a counter that saw one
token of each linear layer, in millions, under the name of billions. Ours says `total_GMACs=…G`:
true multiply-adds of an image on average, in billions.
"""

from collections.abc import Sequence
from typing import Any

from compress.exits.sweep import ExitReport

__all__ = ["deployment_block", "sweep_block"]


def sweep_block(report: ExitReport) -> str:
    """Return the block of one threshold: a line per block of the network, then the sums."""
    (threshold, *_) = report.thresholds
    fence = f"****************{threshold:g}****************"
    cost = report.expected_macs / 1e9
    lines = [fence]
    for rate, accuracy, block in zip(*_per_block(report), range(report.depth), strict=True):
        left = f"{rate}/{accuracy}" if rate else "0.0/0"
        lines.append(f"Exiting Layer{block}:[{left}]")
    lines += [
        f"acc_val={report.acc1},total_GMACs={cost}G",
        fence,
        f"threshold:{threshold:g}-->expected_acc:{report.acc1}<=>expected_GMACs{cost}G",
        str(report.images),
        str(sum(report.correct)),
    ]
    return "\n".join(lines)


def deployment_block(report: ExitReport) -> str:
    """Return the block of a deployed network: accuracy, count and rate per block, then the sums."""
    rates, accuracies = _per_block(report)
    counts = _spread(report, report.counts, 0)
    share = f"{report.macs_share:.1%}"
    lines = [
        f"threshold={', '.join(f'{bar:g}' for bar in dict.fromkeys(report.thresholds))}",
        "EXIT CORRECT RATE:",
        str(accuracies),
        str(counts),
        str(rates),
        f"* Acc@1 {report.acc1:.3f} Acc@5 {report.acc5:.3f} loss {report.loss:.3f}",
        f"expected MACs per image: {report.expected_macs / 1e6:.2f} M, {share} of the whole",
    ]
    return "\n".join(lines)


def _per_block(report: ExitReport) -> tuple[list[float], list[float]]:
    rates = _spread(report, report.rates, 0.0)
    accuracies = [0.0 if accuracy is None else accuracy for accuracy in report.accuracies]
    return rates, _spread(report, accuracies, 0.0)


def _spread(report: ExitReport, values: Sequence[Any], empty: Any) -> list[Any]:
    """Lay the values of the exits out over all blocks of the network."""
    by_block = dict(zip(report.positions, values, strict=True))
    return [by_block.get(block, empty) for block in range(report.depth)]
