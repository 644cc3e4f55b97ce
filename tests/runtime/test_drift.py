"""The test that a monitor watches with: its guarantee, its power, and that lesser tests lack both.

Simulations draw a calibration and a stream for each of 1,000 runs, as the guarantee is over both.
"""

import functools
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.runtime import drift
from compress.runtime.drift import DriftMonitor, RateTest, binomial_interval
from compress.runtime.reference_rates import CONFIDENCE_EDGES, ReferenceRates

scipy_stats = pytest.importorskip("scipy.stats")

RUNS, IMAGES = 1000, 5000
RATES = np.array([0.3, 0.3, 0.2, 0.2])
ERROR = 0.05  # of the intervals; as much again of the bets, so α is 0.1
MOST_ALARMS = int(scipy_stats.binom.ppf(0.999, RUNS, 2 * ERROR))


@pytest.fixture(autouse=True)
def remembered_intervals(monkeypatch):
    """Many simulated calibrations have the same counts."""
    monkeypatch.setattr(drift, "binomial_interval", functools.lru_cache(None)(binomial_interval))


@settings(deadline=None)
@given(st.integers(1, 20_000), st.floats(0, 1), st.sampled_from([1e-6, 1e-3, 0.05]))
def test_intervals_are_clopper_and_pearsons(images, share, error):
    hits = round(share * images)
    low, high = binomial_interval(hits, images, error)
    beta = scipy_stats.beta
    wanted = beta.ppf(error, hits, images - hits + 1) if hits else 0.0
    assert low == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    wanted = beta.isf(error, hits + 1, images - hits) if hits < images else 1.0
    assert high == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_no_image_allows_every_rate():
    assert binomial_interval(0, 0, 0.01) == (0.0, 1.0)


def starts(images):
    """Weights of the times 1 … images of a change, by the formula of the module."""
    later = [1.0] + [1 / (2 * math.log2(t + 1)) for t in range(1, images + 1)]
    return [a - b for a, b in itertools.pairwise(later)], later[-1]


def plain_e_value(counts, stream, error):
    """Likelihood ratios from every start to the end of the stream, without any recursion."""
    total, values = sum(counts), []
    weights, later = starts(len(stream))
    for category, count in enumerate(counts):
        bounds = binomial_interval(count, total, error / (2 * len(counts)))
        for bound, sign in zip(bounds, (-1, 1), strict=True):
            for step in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
                if not 0 < bound < 1:
                    continue
                odds = bound / (1 - bound) * math.exp(sign * step)
                q = odds / (1 + odds)
                ratios = [q / bound if x == category else (1 - q) / (1 - bound) for x in stream]
                products = [math.prod(ratios[i:]) for i in range(len(stream))]
                values.append(np.dot(weights, products) + later)
    return np.mean(values)


@pytest.mark.parametrize("counts", [(30, 50, 20), (0, 7, 93), (3, 0, 0)])
def test_the_recursion_is_the_sum_over_all_starts(counts):
    stream = np.random.default_rng(1).integers(0, 3, 40).tolist()
    test = RateTest(counts, np.eye(3, dtype=bool), error=0.02)
    for i, category in enumerate(stream, 1):
        test.update(category)
        assert test.e_value == pytest.approx(plain_e_value(counts, stream[:i], 0.02), rel=1e-9)


def test_the_expectation_is_at_most_1_inside_the_intervals_exactly():
    test = RateTest((40, 60), np.eye(2, dtype=bool), error=0.1)
    streams = np.array(list(itertools.product([0, 1], repeat=10)))
    for place in range(10):
        test.update(streams[:, place])
    for p in np.linspace(test.low[0], test.high[0], 9):
        chances = np.prod(np.where(streams == 0, p, 1 - p), axis=1)
        assert chances @ test.e_value <= 1 + 1e-12
    p = test.high[0] + 0.2
    chances = np.prod(np.where(streams == 0, p, 1 - p), axis=1)
    assert chances @ test.e_value > 1.2


class Stacked:
    """The tables of many tests, each for a stream of its own; unused columns never gain."""

    def __init__(self, tests):
        widest = max(test._table.shape[1] for test in tests)
        pads = [widest - test._table.shape[1] for test in tests]
        padded = [
            np.pad(test._table, ((0, 0), (0, pad)), constant_values=1.0)
            for test, pad in zip(tests, pads, strict=True)
        ]
        self.tables = np.stack(padded)
        self.rows = np.arange(len(tests))

    def __getitem__(self, categories):
        return self.tables[self.rows, categories]


def calibrations(images, rng, rates=RATES):
    return rng.multinomial(images, rates, size=RUNS)


def drawn(rng, rates=RATES):
    return np.searchsorted(np.cumsum(rates)[:-1], rng.random(RUNS), side="right")


def first_alarms(counts, rng, images=IMAGES, drifted=None, change=0, events=None):
    """Return (RUNS,) the image of the first alarm, 0 for none, by the code that is tested."""
    events = np.eye(counts.shape[1], dtype=bool) if events is None else events
    made = {}
    for row in map(tuple, counts.tolist()):
        made.setdefault(row, RateTest(row, events, error=ERROR))
    tests = [made[row] for row in map(tuple, counts.tolist())]
    test = RateTest((1,) * counts.shape[1], events, error=ERROR)
    test._table = Stacked(tests)
    test._stakes = np.zeros((RUNS, test._table.tables.shape[2]))
    test._bounds = [(0, True)]
    first = np.zeros(RUNS, dtype=int)
    for image in range(1, images + 1):
        test.update(drawn(rng, RATES if drifted is None or image <= change else drifted))
        first[(first == 0) & (test.e_value >= 1 / ERROR)] = image
    return first


@pytest.mark.parametrize("images", [30, 300, 5000])
def test_false_alarms_are_as_rare_as_stated(images):
    rng = np.random.default_rng(images)
    alarms = (first_alarms(calibrations(images, rng), rng) > 0).sum()
    assert alarms <= MOST_ALARMS


def test_false_alarms_of_confidences_are_as_rare_as_stated():
    rng = np.random.default_rng(5)
    events = np.arange(4)[:, None] <= np.arange(3)
    alarms = (first_alarms(calibrations(200, rng), rng, events=events) > 0).sum()
    assert alarms <= MOST_ALARMS


def test_a_reference_that_is_taken_for_the_truth_gives_false_alarms(monkeypatch):
    monkeypatch.setattr(drift, "binomial_interval", lambda hits, n, error: (hits / n, hits / n))
    rng = np.random.default_rng(300)
    alarms = (first_alarms(calibrations(300, rng), rng) > 0).sum()
    assert alarms > 3 * MOST_ALARMS


def test_repeated_chi_square_gives_false_alarms():
    rng = np.random.default_rng(3)
    bar = scipy_stats.chi2.isf(2 * ERROR, len(RATES) - 1)
    counts, alarms = np.zeros((RUNS, len(RATES))), np.zeros(RUNS, dtype=bool)
    for _ in range(50):
        counts += rng.multinomial(IMAGES // 50, RATES, size=RUNS)
        wanted = counts.sum(axis=1, keepdims=True) * RATES  # even with the true rates
        alarms |= ((counts - wanted) ** 2 / wanted).sum(axis=1) > bar
    assert alarms.sum() > 3 * MOST_ALARMS


@pytest.mark.parametrize(("change", "half", "most"), [(0, 600, 1200), (3000, 1000, 1900)])
def test_10_points_more_at_an_exit_are_found(change, half, most):
    rng = np.random.default_rng(4)
    shifted = RATES + np.array([0.1, -0.1 / 3, -0.1 / 3, -0.1 / 3])
    counts = calibrations(5000, rng)
    first = first_alarms(counts, rng, images=change + most, drifted=shifted, change=change)
    found = first > change
    assert np.mean(found & (first <= change + half)) >= 0.5
    assert np.mean(found) >= 0.9


def reference(images=4000, seed=0, rates=(0.5, 0.3, 0.2)):
    exits, scores = stream(images, seed, rates)
    return ReferenceRates.measured(exits, scores, (0.5,) * (len(rates) - 1))


def stream(images, seed, rates=(0.5, 0.3, 0.2), sureness=4.0):
    rng = np.random.default_rng(seed)
    exits = rng.choice(len(rates), size=images, p=rates)
    return exits.tolist(), rng.beta(sureness, 1.0, size=images).tolist()


def watched(monitor, exits, scores):
    return [i for i, pair in enumerate(zip(exits, scores, strict=True), 1) if monitor.update(*pair)]


def test_a_stream_like_the_calibration_raises_no_alarm():
    monitor = DriftMonitor(reference(), false_alarm=0.1)
    assert watched(monitor, *stream(6000, 7)) == []
    assert monitor.alarm is None


def test_confidence_drifts_where_exit_rates_do_not():
    monitor = DriftMonitor(reference())
    alarms = watched(monitor, *stream(2000, 8, sureness=2.5))
    assert len(alarms) == 1  # latched: no second one
    alarm = monitor.alarm
    assert alarms == [alarm.image]
    assert alarm.image < 600
    assert alarm.too_many
    assert alarm.confidence in CONFIDENCE_EDGES
    assert alarm.e_value >= monitor.alarm_at == 200
    assert alarm.share > alarm.high
    assert monitor.confidence_e_value > 200
    found = f"that leave at exit {alarm.exit_index} have confidence <= {alarm.confidence:g}"
    assert alarm.to_text().startswith(f"drift at image {alarm.image}: too many images {found} (")


def test_an_exit_that_is_no_longer_taken():
    monitor = DriftMonitor(reference())
    watched(monitor, *stream(1000, 9, rates=(0.5, 0.5, 0.0)))
    alarm = monitor.alarm
    assert (alarm.exit_index, alarm.too_many) in {(1, True), (2, False)}
    assert alarm.confidence is None
    assert f"images leave at exit {alarm.exit_index} (lately" in alarm.to_text()


def test_exits_alone_when_no_score_is_told():
    monitor = DriftMonitor(reference())
    assert not any(monitor.update(np.int64(0)) for _ in range(8))
    assert monitor.confidence_e_value == 1
    assert any(monitor.update(0) for _ in range(60))


def test_a_network_without_exits_is_watched_by_confidence():
    found = ReferenceRates.measured([0] * 2000, stream(2000, 1)[1], ())
    monitor = DriftMonitor(found)
    assert watched(monitor, [0] * 1000, stream(1000, 2)[1]) == []
    assert monitor.e_value == monitor.confidence_e_value
    assert watched(monitor, [0] * 500, stream(500, 2, sureness=1.0)[1])
    with pytest.raises(UserInputError, match="or confidences where the network has no exits"):
        DriftMonitor(ReferenceRates((2000,), ()))


def test_a_report_by_hand():
    counts = ReferenceRates.measured([0, 0, 0, 1] * 25, [0.75, 0.85, 0.95, 0.5] * 25, [0.5])
    monitor = DriftMonitor(counts, false_alarm=0.02, window=2)
    for exit_index, score in [(0, 0.5), (1, 0.25), (0, 0.75)]:
        monitor.update(np.int64(exit_index), np.float32(score))
    json.dumps(monitor.report().to_dict(), allow_nan=False)
    report = monitor.report().to_dict()
    assert report["images"] == 3
    assert report["exit_rates"] == [2 / 3, 1 / 3]
    assert report["expected_rates"] == [0.75, 0.25]
    wanted = binomial_interval(75, 100, 0.02 / 2 / 2 / 4)
    assert report["allowed_rates"][0] == pytest.approx(list(wanted))
    assert (report["window_images"], report["window_rates"]) == (2, [0.5, 0.5])
    assert report["window_confidence"] == [0.75, 0.25]
    assert report["expected_confidence"] == pytest.approx([0.85, 0.5])
    assert report["alarm_at"] == 100
    mean = (report["exit_e_value"] + report["confidence_e_value"]) / 2
    assert report["e_value"] == pytest.approx(mean)
    assert (
        monitor.report()
        .to_text()
        .startswith(
            "3 images, exits 66.7 33.3, last 2 50.0 50.0, expected 75.0 25.0 %; "
            "confidence 0.750 0.250, expected 0.850 0.500; evidence "
        )
    )
    assert DriftMonitor(counts).report().to_text() == "no image"


def test_a_stake_that_grew_beyond_all_bounds_stays_a_number():
    monitor = DriftMonitor(ReferenceRates((9999, 1), (0.5,)))
    for _ in range(3000):
        monitor.update(1)
    assert math.isfinite(monitor.e_value)
    assert monitor.e_value > 1e200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"false_alarm": 0.0}, "false-alarm rate is 0.0; expected a probability"),
        ({"false_alarm": math.nan}, "false-alarm rate is nan"),
        ({"window": 0}, "window is 0 images; expected at least 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserInputError, match=message):
        DriftMonitor(reference(100), **options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((3, 0.5), "left at exit 3, the calibration has exits from 0 to 2"),
        ((-1, 0.5), "left at exit -1"),
        ((0, 1.5), "a confidence is 1.5; expected a number from 0 to 1"),
        ((0, math.nan), "a confidence is nan"),
    ],
)
def test_images_out_of_range(image, message):
    monitor = DriftMonitor(reference(100))
    with pytest.raises(UserInputError, match=message):
        monitor.update(*image)
    assert monitor.images == 0
