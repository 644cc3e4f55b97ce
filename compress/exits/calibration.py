"""How far scores can be believed: calibration of the exits, and how well gates rank.

Expected calibration error over 15 quantile bins of the largest probability,
Σ_b n_b/n |acc_b - conf_b| (Guo et al., arXiv 1706.04599, with bins of equal count); temperature
scaling is theirs too: one scalar per exit that minimises the cross entropy on the calibration
split.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable

__all__ = [
    "ExitCalibration",
    "Oracle",
    "calibrate",
    "expected_calibration_error",
    "fit_temperature",
    "gate_auroc",
    "oracle",
]

BINS = 15
LOG_RANGE = (-4.0, 4.0)  # of the temperature: e^-4 … e^4 holds every sane network


@dataclass(frozen=True, kw_only=True)
class ExitCalibration:
    """One exit.

    Attributes:
        position: block behind which it stands.
        temperature: fitted on the calibration split; above 1 for an overconfident exit.
        ece_before: expected calibration error on the test split, in [0, 1].
        ece_after: the same with the logits divided by the temperature.
        auroc: chance that the gate scores a rightly classified image above a wrong one; None for
            the final head, and where all images are right or all are wrong.
        acc1: accuracy of this exit on all images, in per cent.
    """

    position: int
    temperature: float
    ece_before: float
    ece_after: float
    auroc: float | None
    acc1: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The best that exits could do, if gates knew which of them are right.

    Attributes:
        acc1: share of images that some exit gets right, in per cent.
        expected_macs: when each image leaves at its first right exit, or else at the last.
        overthinking: share of images that an earlier exit had right and the final head has wrong,
            in per cent.
    """

    acc1: float
    expected_macs: float
    overthinking: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def calibrate(calibration: ReplayTable, test: ReplayTable) -> list[ExitCalibration]:
    """Fit every exit on the calibration split, and say how it does on the test split.

    Raises:
        UserInputError: the tables are of different networks.
    """
    if calibration.positions != test.positions or calibration.depth != test.depth:
        raise UserInputError(
            f"the calibration table has exits {calibration.positions}, the test table "
            f"{test.positions}; expected two splits run through one network"
        )
    right = test.correct
    found = []
    for i, position in enumerate([*test.positions, test.depth - 1]):
        temperature = fit_temperature(calibration.logits[:, i], calibration.labels)
        logits = test.logits[:, i]
        found.append(
            ExitCalibration(
                position=position,
                temperature=temperature,
                ece_before=expected_calibration_error(logits, test.labels),
                ece_after=expected_calibration_error(logits / temperature, test.labels),
                auroc=gate_auroc(test.scores[:, i], right[:, i]) if i < test.exits else None,
                acc1=100.0 * float(right[:, i].mean()),
            )
        )
    return found


def expected_calibration_error(
    logits: NDArray[np.float32], labels: NDArray[np.int64], *, bins: int = BINS
) -> float:
    """Return Σ_b n_b/n |accuracy_b - confidence_b| over bins of equal count of the confidence.

    Args:
        logits: (N, K).
        labels: (N,).
        bins: at most N are used.
    """
    probabilities = _softmax(logits)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    error = 0.0
    for members in np.array_split(order, min(bins, len(order))):
        gap = abs(float(right[members].mean()) - float(confidence[members].mean()))
        error += len(members) / len(order) * gap
    return error


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature T > 0 that minimises the cross entropy of logits / T.

    The cross entropy is convex in 1/T, so a golden-section search over ln T finds its one minimum
    within the range e^-4 … e^4.
    """
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return torch.nn.functional.cross_entropy(x / np.exp(log_temperature), y).item()

    low, high = LOG_RANGE
    golden = (5**0.5 - 1) / 2
    while high - low > 1e-5:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def gate_auroc(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve of scores against correctness; ties count half.

    None where all images are right or all are wrong, or a score is not a number.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if positives == 0 or negatives == 0 or np.isnan(scores).any():
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # of ties their mean, the smallest is 1
    above = ranks[right].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def oracle(table: ReplayTable) -> Oracle:
    """Return what leaving at the first right exit would give."""
    right = table.correct
    first = np.where(right.any(axis=1), right.argmax(axis=1), table.exits)
    overthought = right[:, :-1].any(axis=1) & ~right[:, -1]
    return Oracle(
        acc1=100.0 * float(right.any(axis=1).mean()),
        expected_macs=float(table.macs[first].mean()),
        overthinking=100.0 * float(overthought.mean()),
    )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
