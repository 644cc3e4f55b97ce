"""Figures in the wording of the published logs, so that they can be laid side by side.

One line differs on purpose. The logs print `total_GFLOPs=…G`, computed by a counter that saw one
token of each linear layer, in millions, under the name of billions. Ours says `total_GMACs=…G`:
true multiply-adds of an image on average, in billions.

Percentages of a sweep are printed as the nearest float32, as the logs have them; those of a
deployment are float64.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.exits.sweep import ExitReport

__all__ = ["deployment_block", "sweep_block"]


def sweep_block(report: ExitReport) -> str:
    """Return what the logs print for a threshold, the same for all exits.

    Images, those of them that are right, a line per block of the network, and the sums.
    """
    threshold, images = report.thresholds[0], report.images
    fence = f"****************{threshold}****************"
    cost = report.expected_macs / 1e9
    lines = [str(images), str(sum(report.correct)), fence]
    counts = _spread(report, report.counts, 0)
    for block, (count, right) in enumerate(
        zip(counts, _spread(report, report.correct, 0), strict=True)
    ):
        left = f"{_percent(count, images)}/{_percent(right, count)}" if count else "0.0/0"
        lines.append(f"Exiting Layer{block}:[{left}]")
    lines += [
        f"acc_val={report.acc1},total_GMACs={cost}G",
        fence,
        f"threshold:{threshold}-->expected_acc:{report.acc1}<=>expected_GMACs{cost}G",
    ]
    return "\n".join(lines)


def deployment_block(report: ExitReport) -> str:
    """Return the block of a deployed network: accuracy, count and rate per block, then the sums."""
    accuracies = [0.0 if accuracy is None else accuracy for accuracy in report.accuracies]
    share = f"{report.macs_share:.1%}"
    lines = [
        f"threshold={report.threshold_text}",
        "EXIT CORRECT RATE:",
        str(_spread(report, accuracies, 0.0)),
        str(_spread(report, report.counts, 0)),
        str(_spread(report, report.rates, 0.0)),
        f"* Acc@1 {report.acc1:.3f} Acc@5 {report.acc5:.3f} loss {report.loss:.3f}",
        f"expected MACs per image: {report.expected_macs / 1e6:.2f} M, {share} of the whole",
    ]
    return "\n".join(lines)


def _percent(part: int, whole: int) -> float:
    return float(np.float32(100 * part / whole))


def _spread(report: ExitReport, values: Sequence[Any], empty: Any) -> list[Any]:
    """Lay the values of the exits out over all blocks of the network."""
    by_block = dict(zip(report.positions, values, strict=True))
    return [by_block.get(block, empty) for block in range(report.depth)]
