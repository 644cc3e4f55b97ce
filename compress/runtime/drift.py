"""Has the stream drifted from the calibration images? A test that may be looked at all the time.

**What is tested.** For every exit, the share of the images that leave there. For every exit and
every edge of confidence, the share of the images leaving there whose confidence is at most the
edge. Each share p is a Bernoulli rate, of which the calibration has seen k of n.

**Reference.** The calibration's rates are estimates, so they are not taken for the truth: p lies in
Clopper and Pearson's exact interval [low, high], and all intervals hold together with probability
1 - α/2 (Bonferroni). Images of the stream count as drifted only where a rate is outside.

**Bets.** Against p <= high, alternatives q > high are bet on: an image multiplies the stake by
q / high where the event happens and by (1 - q) / (1 - high) where not. While p <= high this has an
expectation of at most 1 for each image, whatever came before, so a stake is a test supermartingale;
against p >= low likewise. A new stake w_t is added before each image t, with w_1 + w_2 + ... = 1:
evidence of a change at any time starts afresh, and a long quiet time does not bury it.

    R_t = (R_{t-1} + w_t) * factor_t        M_t = R_t + what has not been staked yet

which is the Shiryaev-Roberts recursion with a proper distribution of the time of change: half of it
on the first image, and 1 / (2 log2(t + 1)) later than image t. The e-value is the mean of M over
all q, shares and both kinds of test (exits, confidence).

**Guarantee.** Ville's inequality: P(e-value ever >= 2/α) <= α/2. With the intervals,

    P(ever an alarm | the stream is like the calibration) <= α

over the draw of calibration and stream, for a stream of any length. "Like" means: calibration
images are independent draws, and each image of the stream has, whatever came before it, a
probability of each event inside its interval; independent draws from the distribution of the
calibration are so. Neighbouring frames of one video are not: thin them out. The thresholds are
taken as given beforehand.

Sources: e-detectors, arXiv 2203.03532 (its sums of unweighted stakes bound the average run length;
weights that sum to 1 bound the probability); sequential tests of counts, arXiv 2011.03567; test
martingales and Ville's inequality, arXiv 2210.01948.
"""

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple

import numpy as np

from compress.errors import UserInputError
from compress.runtime.reference_rates import ReferenceRates

__all__ = ["Alarm", "DriftMonitor", "DriftReport", "RateTest", "binomial_interval"]

STEPS = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])  # log odds from the bound to an alternative q
CAP = 1e250  # of a stake: it may only lose by it, so the guarantee stays
MAX_WINDOW = 1_000_000  # images
SMALLEST_FALSE_ALARM = 1e-12
BISECTIONS = 60


def binomial_interval(hits: int, images: int, error: float) -> Tuple[float, float]:
    """Return Clopper and Pearson's exact interval, each side missed with probability <= error.

    Args:
        hits: images with the event, 0 <= hits <= images.
        images: how many there were; of none, the interval is [0, 1].
        error: of each side, in (0, 1).

    >>> [round(bound, 4) for bound in binomial_interval(0, 10, 0.025)]
    [0.0, 0.3085]
    """
    return 1 - _upper(images - hits, images, error), _upper(hits, images, error)


def _upper(hits: int, images: int, error: float) -> float:
    """Return the p at which so few hits have the probability `error`, rounded up."""
    if hits == images:
        return 1.0
    # Terms below `hits` by 50 standard deviations do not change a sum in double precision.
    places = np.arange(hits, max(0, hits - 50 * math.isqrt(images) - 50), -1, dtype=np.float64)
    falls = np.cumsum(np.log(places / (images - places + 1)))
    below = np.arange(1, len(places) + 1)
    choices = math.lgamma(images + 1) - math.lgamma(hits + 1) - math.lgamma(images - hits + 1)
    low, high = hits / images, 1.0
    for _ in range(BISECTIONS):
        p = (low + high) / 2
        if p in (low, high):
            break
        last = choices + hits * math.log(p) + (images - hits) * math.log1p(-p)
        tail = math.exp(last) * (1 + np.exp(falls + below * math.log((1 - p) / p)).sum())
        low, high = (p, high) if tail > error else (low, p)
    return high


class RateTest:
    """Tests the rates of events, which categories of images have, against counts of categories.

    Args:
        counts: (K,) images of each category in the calibration.
        events: (K, C) bool, which category has which event.
        error: probability with which any of the intervals may be wrong.

    Attributes:
        low: (C,) lower end of each event's interval.
        high: (C,) upper end.
        images: of the stream so far.
    """

    def __init__(self, counts: Sequence[int], events: np.ndarray, *, error: float) -> None:
        total, number = int(sum(counts)), events.shape[1]
        hits = np.asarray(counts, dtype=np.int64) @ events.astype(np.int64)
        each = [binomial_interval(int(k), total, error / (2 * number)) for k in hits]
        self.low = np.array([low for low, _ in each])
        self.high = np.array([high for _, high in each])
        self.images = 0
        unsure = [c for c in range(number) if not events[:, c].all()]  # a sure event tells nothing
        bounds = [(c, True) for c in unsure if 0 < self.high[c] < 1]
        bounds += [(c, False) for c in unsure if 0 < self.low[c] < 1]
        self._bounds = bounds
        columns = [self._factors(events[:, c], c, up) for c, up in bounds]
        self._table = np.hstack(columns) if columns else np.empty((len(counts), 0))
        self._stakes: np.ndarray = np.zeros(self._table.shape[1])

    def _factors(self, has_event: np.ndarray, event: int, up: bool) -> np.ndarray:
        """Return (K, steps): what an image of each category multiplies stakes on q with."""
        bound = self.high[event] if up else self.low[event]
        odds = math.log(bound / (1 - bound)) + (STEPS if up else -STEPS)
        q = 1 / (1 + np.exp(-odds))
        factors: np.ndarray = np.where(has_event[:, None], q / bound, (1 - q) / (1 - bound))
        return factors

    @property
    def is_idle(self) -> bool:
        """Whether nothing can be tested, because the intervals allow every rate."""
        return not self._bounds

    def update(self, category: Any) -> None:
        """Take one image: its category, or (S,) categories of S streams at once."""
        new = _unstaked(self.images) - _unstaked(self.images + 1)
        self.images += 1
        self._stakes = np.minimum((self._stakes + new) * self._table[category], CAP)

    @property
    def e_value(self) -> Any:
        """The evidence: a float, or (S,) of S streams; 1 where nothing can be tested."""
        if self.is_idle:
            return 1.0
        return self._stakes.mean(axis=-1) + _unstaked(self.images)

    def strongest(self) -> Tuple[int, bool]:
        """Return the event of one stream with the most evidence, and whether it is too frequent."""
        return self._bounds[int(self._stakes.argmax()) // len(STEPS)]


def _unstaked(images: int) -> float:
    """Return the probability, set beforehand, that a change comes after so many images."""
    return 1.0 if images == 0 else 1 / (2 * math.log2(images + 1))


@dataclass(frozen=True)
class Alarm:
    """What drifted first.

    Attributes:
        image: number of the image at which the alarm was raised, from 1.
        e_value: at that image.
        exit_index: that drifted.
        confidence: None where the rate of the exit drifted; else the edge: the share of the images
            leaving there that have at most this confidence did.
        too_many: whether the share is above what the calibration allows, or below.
        share: in the window, in [0, 1]; None where no image left at the exit.
        low: the smallest share that the calibration allows.
        high: the largest.
    """

    image: int
    e_value: float
    exit_index: int
    confidence: Optional[float]
    too_many: bool
    share: Optional[float]
    low: float
    high: float

    def to_text(self) -> str:
        """Return one sentence."""
        what = f"leave at exit {self.exit_index}"
        if self.confidence is not None:
            what = f"that leave at exit {self.exit_index} have confidence <= {self.confidence:g}"
        seen = "" if self.share is None else f"lately {100 * self.share:.1f} %, "
        return (
            f"drift at image {self.image}: too {'many' if self.too_many else 'few'} images {what} "
            f"({seen}calibration {100 * self.low:.1f} to {100 * self.high:.1f} %)"
        )


@dataclass(frozen=True)
class DriftReport:
    """Where a stream stands.

    Attributes:
        images: so far.
        exit_rates: (E+1,) shares of all of them, in [0, 1]; None before the first.
        expected_rates: (E+1,) of the calibration.
        allowed_rates: (E+1, 2) ends of the intervals of these.
        window_images: the last ones, at most as many as asked for.
        window_rates: (E+1,) shares of these; None before the first.
        window_confidence: (E+1,) mean of these; None where no image left or none was told.
        expected_confidence: (E+1,) of the calibration; None where it has none.
        e_value: the evidence, 1 at the start.
        exit_e_value: of the exit rates alone.
        confidence_e_value: of the confidences alone; None where they are not tested.
        alarm_at: an e-value at or above it is an alarm.
        false_alarm: the largest probability of an alarm without drift, however long the stream.
        alarm: the first, or None.
    """

    images: int
    exit_rates: Optional[List[float]]
    expected_rates: List[float]
    allowed_rates: List[Tuple[float, float]]
    window_images: int
    window_rates: Optional[List[float]]
    window_confidence: List[Optional[float]]
    expected_confidence: List[Optional[float]]
    e_value: float
    exit_e_value: float
    confidence_e_value: Optional[float]
    alarm_at: float
    false_alarm: float
    alarm: Optional[Alarm]

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "allowed_rates": [list(pair) for pair in self.allowed_rates]}

    def to_text(self) -> str:
        """Return one line."""
        if self.exit_rates is None or self.window_rates is None:
            return "no image"
        line = (
            f"{self.images} images, exits {_percent(self.exit_rates)}, last {self.window_images} "
            f"{_percent(self.window_rates)}, expected {_percent(self.expected_rates)} %"
        )
        if any(mean is not None for mean in self.expected_confidence):
            line += (
                f"; confidence {_means(self.window_confidence)}, "
                f"expected {_means(self.expected_confidence)}"
            )
        return f"{line}; evidence {self.e_value:.3g} of {self.alarm_at:g}"


class DriftMonitor:
    """Compares a stream of exits, and of scores where they are told, with the calibration.

    Args:
        reference: what the calibration images did.
        false_alarm: α, the largest probability of ever raising an alarm without drift, in
            [1e-12, 1).
        window: images that "lately" looks back on, from 1 to a million.

    Attributes:
        images: of the stream so far.
        alarm: the first, or None; the test goes on after it, but raises no second one.

    Raises:
        UserInputError: a value is out of range, or the calibration images are so few that every
            rate is allowed.

    >>> reference = ReferenceRates(exit_counts=(500, 500), thresholds=(0.5,))
    >>> monitor = DriftMonitor(reference)
    >>> any(monitor.update(0) for _ in range(60)), monitor.alarm.exit_index
    (True, 0)
    """

    def __init__(
        self, reference: ReferenceRates, *, false_alarm: float = 0.01, window: int = 1000
    ) -> None:
        if not 0 < false_alarm < 1:
            raise UserInputError(
                f"the false-alarm rate is {false_alarm}; expected a probability between 0 and 1"
            )
        if false_alarm < SMALLEST_FALSE_ALARM:
            raise UserInputError(
                f"the false-alarm rate is {false_alarm:g}; expected at least "
                f"{SMALLEST_FALSE_ALARM:g}, below which there is no alarm in any stream"
            )
        if not 1 <= window <= MAX_WINDOW:
            raise UserInputError(
                f"the window is {window} images; expected at least 1, at most {MAX_WINDOW}, which "
                "are kept in memory"
            )
        self.reference = reference
        self.false_alarm = false_alarm
        self.alarm_at = 2 / false_alarm
        self.images = 0
        self.alarm: Optional[Alarm] = None
        self._counts = [0] * len(reference.exit_counts)
        self._window: Deque[Tuple[int, Optional[float]]] = deque(maxlen=window)
        share = 1 if reference.confidence is None else 2
        self._exits = _exit_test(reference, false_alarm / 2 / share)
        self._confidences = _confidence_tests(reference, false_alarm / 2 / share)
        if self._exits.is_idle and not any(self._confidences):
            raise UserInputError(
                f"{reference.images} calibration images of {len(reference.exit_counts)} exits "
                f"allow every exit rate at a false-alarm rate of {false_alarm:g}; expected more "
                "images, or confidences where the network has no exits"
            )

    def update(self, exit_index: int, score: Optional[float] = None) -> bool:
        """Take one image of the stream.

        Args:
            exit_index: where it left, E for the final head.
            score: what the reference holds as confidence, in [0, 1]; None where it is not known.

        Returns:
            Whether this image raises the alarm.

        Raises:
            UserInputError: a value is out of range.
        """
        if not 0 <= exit_index < len(self._counts):
            raise UserInputError(
                f"an image left at exit {exit_index}, the calibration has exits from 0 to "
                f"{len(self._counts) - 1}; expected the stream of the same bundle"
            )
        if score is not None and not 0 <= score <= 1:  # NaN fails this too
            raise UserInputError(f"a confidence is {score}; expected a number from 0 to 1")
        exit_index = int(exit_index)  # numpy's numbers are no JSON values
        score = None if score is None else float(score)
        self.images += 1
        self._counts[exit_index] += 1
        self._window.append((exit_index, score))
        self._exits.update(exit_index)
        test, found = self._confidences[exit_index], self.reference.confidence
        if score is not None and test is not None and found is not None:
            test.update(found.place(score))
        if self.alarm is not None or self.e_value < self.alarm_at:
            return False
        self.alarm = self._strongest()
        return True

    @property
    def confidence_e_value(self) -> Optional[float]:
        """Evidence of the confidences alone; None where they are not tested."""
        values = [float(test.e_value) for test in self._confidences if test is not None]
        return sum(values) / len(values) if values else None

    @property
    def e_value(self) -> float:
        """The evidence, 1 at the start: a mean of e-values is one."""
        exits, confidence = float(self._exits.e_value), self.confidence_e_value
        if confidence is None:
            return exits
        return confidence if self._exits.is_idle else (exits + confidence) / 2

    def report(self) -> DriftReport:
        """Return where the stream stands."""
        size, found = len(self._counts), self.reference.confidence
        lately = [0] * size
        for exit_index, _ in self._window:
            lately[exit_index] += 1
        return DriftReport(
            images=self.images,
            exit_rates=_shares(self._counts),
            expected_rates=self.reference.rates,
            allowed_rates=list(zip(self._exits.low.tolist(), self._exits.high.tolist())),
            window_images=len(self._window),
            window_rates=_shares(lately),
            window_confidence=[_mean(self._scores(i)) for i in range(size)],
            expected_confidence=[None] * size if found is None else list(found.means),
            e_value=self.e_value,
            exit_e_value=float(self._exits.e_value),
            confidence_e_value=self.confidence_e_value,
            alarm_at=self.alarm_at,
            false_alarm=self.false_alarm,
            alarm=self.alarm,
        )

    def _scores(self, exit_index: int) -> List[float]:
        """Return those of the window that were told of images leaving there."""
        return [score for i, score in self._window if i == exit_index and score is not None]

    def _strongest(self) -> Alarm:
        confidence = self.confidence_e_value
        if confidence is None or self._exits.e_value >= confidence:
            exit_index, too_many = self._exits.strongest()
            share = sum(i == exit_index for i, _ in self._window) / len(self._window)
            return self._alarm(self._exits, exit_index, exit_index, None, too_many, share)
        tests = [(float(t.e_value), i) for i, t in enumerate(self._confidences) if t is not None]
        exit_index = max(tests)[1]
        test, found = self._confidences[exit_index], self.reference.confidence
        if test is None or found is None:
            raise RuntimeError("evidence of a test that is not there")
        event, too_many = test.strongest()
        edge = found.edges[event]
        share_below = _mean([float(score <= edge) for score in self._scores(exit_index)])
        return self._alarm(test, event, exit_index, edge, too_many, share_below)

    def _alarm(
        self,
        test: RateTest,
        event: int,
        exit_index: int,
        edge: Optional[float],
        too_many: bool,
        share: Optional[float],
    ) -> Alarm:
        return Alarm(
            image=self.images,
            e_value=self.e_value,
            exit_index=exit_index,
            confidence=edge,
            too_many=too_many,
            share=share,
            low=float(test.low[event]),
            high=float(test.high[event]),
        )


def _exit_test(reference: ReferenceRates, error: float) -> RateTest:
    size = len(reference.exit_counts)
    return RateTest(reference.exit_counts, np.eye(size, dtype=bool), error=error)


def _confidence_tests(reference: ReferenceRates, error: float) -> List[Optional[RateTest]]:
    """Return a test for each exit; None where the calibration says too little of it."""
    found = reference.confidence
    if found is None:
        return [None] * len(reference.exit_counts)
    edges = len(found.edges)
    # A confidence at place b is at most each edge from b on.
    events = np.arange(edges + 1)[:, None] <= np.arange(edges)
    tests = [RateTest(row, events, error=error / len(found.counts)) for row in found.counts]
    return [None if test.is_idle else test for test in tests]


def _shares(counts: Sequence[int]) -> Optional[List[float]]:
    total = sum(counts)
    return [count / total for count in counts] if total else None


def _mean(values: Sequence[float]) -> Optional[float]:
    return sum(values) / len(values) if values else None


def _percent(shares: Sequence[float]) -> str:
    return " ".join(f"{100 * share:.1f}" for share in shares)


def _means(values: Sequence[Optional[float]]) -> str:
    return " ".join("-" if value is None else f"{value:.3f}" for value in values)
