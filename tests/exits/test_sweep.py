import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from compress.errors import UserInputError
from compress.exits.replay import decide
from compress.exits.sweep import evaluate_at, parse_sweep, sweep, whole_network
from tests.exits.tables import random_table, table_of


def plain(table, thresholds, exits):
    """Decisions image by image, in plain Python."""
    taken = []
    for scores in table.scores.tolist():
        fires = [i for i, bar in zip(exits, thresholds, strict=True) if scores[i] >= bar]
        taken.append(fires[0] if fires else table.exits)
    return taken


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 999), data=st.data())
def test_decisions_and_figures_against_plain_python(seed, data):
    table = random_table(40, 4, 7, seed)
    exits = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1)))
    bars = [round(data.draw(st.floats(0, 1)), 2) for _ in exits]
    taken = plain(table, bars, exits)
    assert decide(table, bars, exits=np.array(exits)).tolist() == taken
    report = evaluate_at(table, bars, positions=exits)
    right = [table.logits[n, e].argmax() == table.labels[n] for n, e in enumerate(taken)]
    assert sum(report.correct) == sum(right)
    assert sum(report.counts) == 40
    assert report.counts == tuple(taken.count(e) for e in [*exits, 4])
    cost = 0
    for e in taken:
        own = table.macs[e] - sum(table.check_macs[: e + 1] if e < 4 else table.check_macs)
        cost += own + sum(table.check_macs[i] for i in exits if i <= e)
    assert report.macs_sum == cost
    losses = [
        math.log(np.exp(table.logits[n, e].astype(float)).sum())
        - float(table.logits[n, e, table.labels[n]])
        for n, e in enumerate(taken)
    ]
    assert report.loss == pytest.approx(sum(losses) / 40)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), bar=st.floats(0, 1))
def test_rates_times_accuracies_are_the_accuracy_exactly(seed, bar):
    report = evaluate_at(random_table(40, 4, 3, seed), bar)
    rates = [Fraction(count, report.images) for count in report.counts]
    pairs = zip(report.correct, report.counts, strict=True)
    accuracies = [Fraction(right, count) if count else 0 for right, count in pairs]
    whole = Fraction(sum(report.correct), report.images)
    assert sum(report.counts) == report.images == 40
    assert sum(rates) == 1
    assert sum(r * a for r, a in zip(rates, accuracies, strict=True)) == whole
    assert report.acc1 == pytest.approx(float(100 * whole), rel=1e-15)
    for told, exact in zip(report.rates, rates, strict=True):
        assert told == pytest.approx(float(100 * exact), rel=1e-15)
    for told, exact, count in zip(report.accuracies, accuracies, report.counts, strict=True):
        assert (told is None) == (count == 0)
        assert told is None or told == pytest.approx(float(100 * exact), rel=1e-15)


def test_equal_logits_never_make_five_guesses_worse_than_one():
    table = table_of((0,), (12, 12), (6, 6), classes=12, depth=2)
    table.logits[:] = 0.0  # the first class leads, so labels 0 … 4 are among the first five
    report = evaluate_at(table, 0.5)
    assert sum(report.correct) == 2
    assert report.correct5 == 10
    assert whole_network(table).correct5 == 10


def test_the_whole_network_is_the_final_head():
    table = random_table(60, 3, 7, 2)
    whole = whole_network(table)
    nobody = evaluate_at(replace(table, scores=np.zeros_like(table.scores)), 0.5)
    assert (whole.count, whole.correct, whole.correct5) == (
        60, sum(nobody.correct), nobody.correct5
    )  # fmt: skip
    assert whole.loss == pytest.approx(nobody.loss)
    labels, logits = table.labels, table.logits[:, -1]
    assert whole.correct5 == round(60 * top_k_accuracy_score(labels, logits, k=5, labels=range(7)))


def test_a_higher_threshold_never_costs_less():
    reports = sweep(random_table(500, 4, 7, 1), parse_sweep("0:1:0.05"))
    costs = [report.macs_sum for report in reports]
    assert costs == sorted(costs)


def test_a_score_that_is_not_a_number_never_fires_even_at_threshold_zero():
    table = table_of((0, 1), (1, 1, 1), (1, 1, 1), depth=3)
    table.scores[:] = np.nan
    assert decide(table, 0.0).tolist() == [2, 2, 2]


def test_float32_scores_are_compared_as_the_early_return_compares_them():
    table = table_of((0,), (1, 0), (1, 0), depth=2)
    table.scores[:] = np.float32(0.8)  # 0.800000011920929
    assert decide(table, 0.8).tolist() == [0]
    assert decide(table, 0.80000001).tolist() == [0]
    assert decide(table, 0.80000002).tolist() == [1]


def test_sweeps_are_decimal():
    assert parse_sweep("0.2:0.95:0.05")[:3] == [0.2, 0.25, 0.3]
    assert parse_sweep("0.2:0.95:0.05")[-1] == 0.95
    assert len(parse_sweep("0.2:0.95:0.05")) == 16
    assert parse_sweep("0:1:0.3") == [0.0, 0.3, 0.6, 0.9]


@pytest.mark.parametrize(
    "text", ["0.2", "a:b:c", "0.2:0.1:0.05", "0:1:0", "0:1:-0.1", "0:1.1:0.1", "-1:1:0.1",
             "0:1:0.0000001", "nan:1:0.1", "0:inf:0.1"],
)  # fmt: skip
def test_bad_sweeps(text):
    with pytest.raises(UserInputError, match="--sweep is"):
        parse_sweep(text)


def test_without_exits_all_images_reach_the_final_head():
    table = random_table(20, 3, 5, 0)
    report = evaluate_at(table, (), positions=())
    assert report.counts == (20,)
    assert report.correct == (int(table.correct[:, -1].sum()),)
    assert report.macs_share == 1


def test_bad_thresholds_and_exits():
    table = random_table(4, 3, 5, 0)
    for bars in (1.1, -0.1, float("nan"), [0.5, 0.5]):
        with pytest.raises(UserInputError, match="threshold"):
            evaluate_at(table, bars)
    # Out of order, thresholds that are given one each would go to the wrong exits.
    for positions in ([0, 0], [3], [-1], [1, 0]):
        with pytest.raises(UserInputError, match="--exits is"):
            evaluate_at(table, 0.5, positions=positions)
