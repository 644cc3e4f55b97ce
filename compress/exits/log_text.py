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
from compress.runtime.exit_spelling import Position

__all__ = ["deployment_block", "sweep_block"]


def sweep_block(report: ExitReport) -> str:
    """Return what the logs print for a threshold, the same for all exits.

    Images, those of them that are right, a line per block of the network, and the sums. A network
    that is not counted in blocks has a line per exit, which says where the exit stands.
    """
    threshold, images = report.thresholds[0], report.images
    fence = f"****************{threshold}****************"
    cost = report.expected_macs / 1e9
    lines = [str(images), str(sum(report.correct)), fence]
    counts = _spread(report, report.counts, 0)
    rows = zip(_places(report), counts, _spread(report, report.correct, 0), strict=True)
    for place, count, right in rows:
        left = f"{_percent(count, images)}/{_percent(right, count)}" if count else "0.0/0"
        lines.append(f"Exiting {_layer(place)}:[{left}]")
    lines += [
        f"acc_val={report.acc1},total_GMACs={cost}G",
        fence,
        f"threshold:{threshold}-->expected_acc:{report.acc1}<=>expected_GMACs{cost}G",
    ]
    return "\n".join(lines)


def deployment_block(report: ExitReport) -> str:
    """Return the block of a deployed network: accuracy, count and rate per block, then the sums.

    Of a network that is not counted in blocks they are per exit, and a line says where these stand.
    """
    accuracies = [0.0 if accuracy is None else accuracy for accuracy in report.accuracies]
    share = f"{report.macs_share:.1%}"
    lines = [
        f"threshold={report.threshold_text}",
        *([] if report.depth else [f"EXITS: {', '.join(map(str, report.positions))}"]),
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


def _places(report: ExitReport) -> Sequence[Position]:
    """Return what the logs have a line for: every block; in other networks every exit."""
    return range(report.depth) if report.depth else report.positions


def _layer(place: Position) -> str:
    return f"Layer{place}" if isinstance(place, int) else str(place)


def _spread(report: ExitReport, values: Sequence[Any], empty: Any) -> list[Any]:
    """Lay the values of the exits out over all places that have a line."""
    by_place = dict(zip(report.positions, values, strict=True))
    return [by_place.get(place, empty) for place in _places(report)]
