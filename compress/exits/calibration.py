"""How far scores can be believed: calibration of the exits, and how well gates rank.

Expected calibration error over 15 quantile bins of the largest probability,
Σ_b n_b/n |acc_b - conf_b| (Guo et al., arXiv 1706.04599, with bins of equal count); temperature
scaling is theirs too: one scalar per exit that minimises the cross entropy on the calibration
split.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable
from compress.runtime.exit_spelling import Position

__all__ = [
    "ExitCalibration",
    "GatedCalibration",
    "Oracle",
    "calibrate",
    "calibrate_gated",
    "expected_calibration_error",
    "fit_temperature",
    "gate_auroc",
    "oracle",
]

BINS = 15
LOG_RANGE = (-4.0, 4.0)  # of the temperature: e^-4 … e^4 holds every sane network
PRECISION = 1e-4  # of its logarithm


@dataclass(frozen=True, kw_only=True)
class ExitCalibration:
    """One exit.

    Attributes:
        position: where it stands; of the final head what `ReplayTable.last` calls it.
        temperature: fitted on the calibration split; above 1 for an overconfident exit. None where
            a logit is not a number, and so for the errors.
        ece_before: expected calibration error on the test split, in [0, 1].
        ece_after: the same with the logits divided by the temperature. Gates read the logits as
            they are, so it changes no decision.
        auroc: chance that the gate scores a rightly classified image above a wrong one; None for
            the final head, and where all images are right or all are wrong.
        acc1: accuracy of this exit on all images, in per cent.
    """

    position: Position
    temperature: float | None
    ece_before: float | None
    ece_after: float | None
    auroc: float | None
    acc1: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GatedCalibration:
    """The logits that images leave with, each from the exit that it takes.

    Attributes:
        ece_before: expected calibration error on the test split, in [0, 1]; None where a logit is
            not a number.
        ece_after: the same with the logits of every exit divided by its temperature.
    """

    ece_before: float | None
    ece_after: float | None

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
    for i, position in enumerate([*test.positions, test.last]):
        temperature = fit_temperature(calibration.logits[:, i], calibration.labels)
        logits = test.logits[:, i]
        found.append(
            ExitCalibration(
                position=position,
                temperature=temperature,
                ece_before=expected_calibration_error(logits, test.labels),
                ece_after=expected_calibration_error(_cooled(logits, temperature), test.labels),
                auroc=gate_auroc(test.scores[:, i], right[:, i]) if i < test.exits else None,
                acc1=100.0 * float(right[:, i].mean()),
            )
        )
    return found


def calibrate_gated(
    table: ReplayTable, taken: NDArray[np.int64], exits: Sequence[ExitCalibration]
) -> GatedCalibration:
    """Say how far the confidence of what images leave with can be believed.

    Args:
        table: of the test split.
        taken: the exit (N,) of each image, as `compress.exits.replay.decide` says.
        exits: what `calibrate` found.
    """
    logits = table.logits[np.arange(len(table)), taken]
    # An exit that gives NaN has no temperature, and nobody takes it.
    fitted = np.array([each.temperature or 1.0 for each in exits])
    return GatedCalibration(
        ece_before=expected_calibration_error(logits, table.labels),
        ece_after=expected_calibration_error(logits / fitted[taken][:, None], table.labels),
    )


def expected_calibration_error(
    logits: NDArray[np.floating], labels: NDArray[np.int64], *, bins: int = BINS
) -> float | None:
    """Return Σ_b n_b/n |accuracy_b - confidence_b| over bins of equal count of the confidence.

    Images of equal confidence are in one bin, so the order of the images does not matter; where
    many are equal, bins are of unequal count, or fewer.

    Args:
        logits: (N, K).
        labels: (N,).
        bins: how many.

    Returns:
        None where a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        return None
    probabilities = _softmax(logits)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    inner_edges = np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1])
    bin_of = np.searchsorted(inner_edges, confidence)
    surplus = np.bincount(bin_of, weights=right - confidence)  # n_b (acc_b - conf_b)
    return float(np.abs(surplus).sum() / len(labels))


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    """Return the temperature T > 0 that minimises the cross entropy of logits / T.

    The cross entropy is convex in 1/T, so a golden-section search over ln T finds its one minimum
    within the range e^-4 … e^4. None where a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        return None
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return torch.nn.functional.cross_entropy(x / np.exp(log_temperature), y).item()

    low, high = LOG_RANGE
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > PRECISION:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
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


def _cooled(logits: NDArray[np.float32], temperature: float | None) -> NDArray[np.floating]:
    return logits if temperature is None else logits / temperature


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
