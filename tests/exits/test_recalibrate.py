import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.exits.recalibrate import recalibrated
from compress.exits.replay import decide
from compress.exits.sweep import evaluate_at
from tests.exits.tables import random_table, table_of

# What a network gives after a change, as a function of what it gave: strictly rising in float32.
RISING = {
    "the same": lambda s: s,
    "halved": lambda s: s / 2,
    "shifted": lambda s: (s + 1) / 2,
    "steep": lambda s: s**3,
}


def with_scores(table, scores):
    return replace(table, scores=np.asarray(scores, dtype=np.float32))


def column(scores):
    """A table of one exit with these scores."""
    scores = np.asarray(scores, dtype=np.float32)
    table = table_of((0,), (len(scores), 0), (len(scores), 0), depth=2)
    return with_scores(table, scores[:, None])


def distinct_table(images, exits, seed):
    """Scores that differ from one another by at least 1/1024, none of them 1, in random order."""
    rng = np.random.default_rng(seed)
    table = random_table(images, exits, 5, seed)
    ranks = np.stack([rng.permutation(1023)[:images] for _ in range(exits)], axis=1)
    return with_scores(table, (ranks + 1) / 1024)


thresholds_of = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 999), bars=thresholds_of)
def test_the_same_scores_keep_their_thresholds(seed, bars):
    table = random_table(40, 3, 5, seed)  # with ties and NaN
    found = recalibrated(table, table, bars)
    assert list(found.thresholds) == bars
    assert found.drift == found.remaining_drift == 0
    assert found.before == found.drifted == found.after == evaluate_at(table, bars)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 999),
    bars=thresholds_of,
    kinds=st.lists(st.sampled_from(sorted(RISING)), min_size=3, max_size=3),
)
def test_scores_that_keep_their_order_keep_the_decisions(seed, bars, kinds):
    before = random_table(40, 3, 5, seed)
    # A score of 1 leaves at every threshold, so that it cannot be held back afterwards.
    before = with_scores(before, np.minimum(before.scores, np.float32(0.99)))
    moved = [RISING[kind](before.scores[:, i]) for i, kind in enumerate(kinds)]
    after = with_scores(before, np.stack(moved, axis=1))
    found = recalibrated(before, after, bars)
    assert decide(after, found.thresholds).tolist() == decide(before, bars).tolist()
    assert found.remaining_drift == 0


@settings(max_examples=100, deadline=None)
@given(seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)), bars=thresholds_of)
def test_rates_come_back_where_scores_are_distinct(seeds, bars):
    before, after = (distinct_table(50, 3, seed) for seed in seeds)
    after = replace(after, labels=before.labels)
    found = recalibrated(before, after, bars)
    assert found.after.counts == found.before.counts
    assert found.drifted == evaluate_at(after, bars)
    assert all(0 <= bar <= 1 for bar in found.thresholds)


@settings(max_examples=100, deadline=None)
@given(seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)), bars=thresholds_of)
def test_no_threshold_comes_nearer_to_the_share(seeds, bars):
    """Exit by exit against every threshold there is, in fractions, for scores with ties and NaN."""
    before, after = (random_table(30, 3, 5, seed) for seed in seeds)
    after = replace(after, labels=before.labels)
    found = recalibrated(before, after, bars).thresholds
    former, now = decide(before, bars), decide(after, found)
    for i, bar in enumerate(bars):
        scores = after.scores[now >= i, i].astype(float)
        arrived = int((former >= i).sum())
        if not arrived or not len(scores) or np.isnan(scores).all():
            assert found[i] == bar
            continue
        exact = Fraction(int((former == i).sum()) * len(scores), arrived)
        wanted = -((-2 * exact + 1) // 2)  # to the nearest, halves down
        tried = [0.0, 1.0, *(v for s in scores for v in (s, min(1.0, s + 0.004)) if v == v)]
        possible = {int((scores >= value).sum()) for value in tried}
        best = min(abs(count - wanted) for count in possible)
        leaves = int((scores >= found[i]).sum())
        assert abs(leaves - wanted) == best
        if leaves > wanted and int((scores >= bar).sum()) != leaves:
            assert 2 * wanted - leaves not in possible  # of two equally near, the smaller


def test_the_worked_example():
    before = column([0.9, 0.85, 0.7, 0.4, 0.2])
    found = recalibrated(before, column([0.7, 0.5, 0.4, 0.3, 0.2]), 0.8)
    assert found.thresholds == (pytest.approx(0.45, abs=1e-7),)
    assert (found.before.counts, found.drifted.counts, found.after.counts) == (
        (2, 3),
        (0, 5),
        (2, 3),
    )
    assert (found.drift, found.remaining_drift) == (40.0, 0.0)
    tied = recalibrated(before, column([0.7, 0.5, 0.5, 0.3, 0.2]), 0.8)
    assert tied.thresholds == (pytest.approx(0.6, abs=1e-7),)
    assert tied.after.counts == (1, 4)
    assert tied.remaining_drift == pytest.approx(20)


@pytest.mark.parametrize(
    ("before", "after", "bar", "threshold", "leave"),
    [
        pytest.param([0.9, 0.8], [0.4, 0.2], 0.5, 0.1, 2, id="all leave: half of the lowest"),
        pytest.param([0.2, 0.1], [0.8, 0.6], 0.5, 0.9, 0, id="none leaves: half way to 1"),
        pytest.param([0.2, 0.1], [1.0, 0.6], 0.5, 0.8, 1, id="a score of 1 cannot be held back"),
        pytest.param([0.9, 0.8], [0.0, 0.0], 0.5, 0.0, 2, id="a score of 0 can leave"),
        pytest.param([0.9, 0.8], [np.nan, np.nan], 0.6, 0.6, 0, id="nothing to go by"),
        pytest.param([0.9, 0.8], [np.nan, 0.2], 0.5, 0.1, 1, id="NaN never leaves"),
        pytest.param([0.9, 0.1], [0.9, 0.6], 0.5, 0.75, 1, id="too many would leave"),
        pytest.param([0.9, 0.1], [0.3, 0.6], 0.5, 0.5, 1, id="as many already: kept"),
    ],
)
def test_edges(before, after, bar, threshold, leave):
    found = recalibrated(column(before), column(after), bar)
    assert found.thresholds == (pytest.approx(threshold, abs=1e-7),)
    assert found.after.counts[0] == leave


@pytest.mark.parametrize("low", [0.5, 0.3, 1e-45, np.nextafter(np.float32(1), np.float32(0))])
def test_neighbours_in_float32_are_parted_in_float32_too(low):
    low = np.float32(low)
    high = np.nextafter(low, np.float32(1))
    if high == 1:
        low, high = np.nextafter(low, np.float32(0)), low
    (bar,) = recalibrated(column([0.9, 0.1]), column([low, high]), 0.5).thresholds
    assert [high >= np.float32(bar), low >= np.float32(bar)] == [True, False]
    assert float(np.float32(bar)) == bar


def test_an_exit_that_nobody_reaches_keeps_its_threshold():
    before = with_scores(random_table(3, 2, 5, 0), [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    after = with_scores(before, [[0.4, 0.9], [0.3, 0.8], [0.2, 0.7]])
    found = recalibrated(before, after, [0.5, 0.6])
    assert found.thresholds == (pytest.approx(0.1, abs=1e-7), 0.6)


def test_later_exits_keep_their_share_of_those_that_arrive():
    # 2 of 4 left at the first exit and 1 of the 2 behind it; now 4 equal scores cannot be parted.
    before = with_scores(random_table(4, 2, 5, 0), [[0.9, 0.9], [0.8, 0.9], [0.1, 0.9], [0.2, 0.1]])
    after = with_scores(before, [[0.4, 0.8], [0.4, 0.7], [0.4, 0.6], [0.4, 0.5]])
    found = recalibrated(before, after, 0.85)
    assert found.before.counts == (1, 2, 1)
    # 1 of 4 shall leave; 0 is nearer than 4. Of the 4 that arrive, 2/3: 2.67, so 3.
    assert found.after.counts == (0, 3, 1)


def test_half_an_image_stays():
    # 2 of 4 left at the first exit and 1 of the 2 behind it; now 1 can, and of 3 half shall leave.
    before = with_scores(random_table(4, 2, 5, 0), [[0.9, 0.9], [0.8, 0.9], [0.1, 0.9], [0.2, 0.1]])
    after = with_scores(before, [[0.9, 0.8], [0.4, 0.7], [0.4, 0.6], [0.4, 0.5]])
    assert recalibrated(before, after, [0.5, 0.85]).after.counts == (1, 1, 2)


def test_exits_that_are_not_deployed_are_not_counted():
    before = random_table(40, 4, 5, 3)
    after = replace(
        before,
        scores=before.scores[:, [1, 3]] / 2,
        logits=before.logits[:, [1, 3, 4]],
        positions=(1, 3),
        macs=before.macs[[1, 3, 4]],
        check_macs=before.check_macs[[1, 3]],
    )
    found = recalibrated(before, after, [0.6, 0.5])
    assert found.before == evaluate_at(before, [0.6, 0.5], positions=(1, 3))
    assert found.after.counts == found.before.counts
    assert found.after.acc1 == found.before.acc1


def test_accuracies_and_json():
    before, after = random_table(40, 3, 5, 1), random_table(40, 3, 5, 2)
    after = replace(after, labels=before.labels)
    found = recalibrated(before, after, 0.5)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["acc1"] == {
        "before": evaluate_at(before, 0.5).acc1,
        "drifted": evaluate_at(after, 0.5).acc1,
        "after": evaluate_at(after, found.thresholds).acc1,
    }
    assert told["former_thresholds"] == [0.5, 0.5, 0.5]
    assert told["thresholds"] == list(found.thresholds)
    changes = np.subtract(told["rates"]["before"], told["rates"]["drifted"])
    assert told["drift"] == np.abs(changes).max() > 0
    assert told["images"] == 40


def test_tables_that_cannot_be_compared():
    table = random_table(40, 3, 5, 1)
    with pytest.raises(UserInputError, match="other images"):
        recalibrated(table, replace(table, labels=table.labels[::-1] + 1), 0.5)
    with pytest.raises(UserInputError, match="other images"):
        recalibrated(table, random_table(30, 3, 5, 1), 0.5)
    with pytest.raises(UserInputError, match="exits behind 0,1,5 now"):
        recalibrated(table, replace(table, positions=(0, 1, 5), depth=7), 0.5)
    without = replace(table, positions=(), scores=table.scores[:, :0])
    with pytest.raises(UserInputError, match="exits behind nothing now"):
        recalibrated(table, without, 0.5)
    for bars in (1.5, float("nan"), [0.5, 0.5]):
        with pytest.raises(UserInputError, match="threshold"):
            recalibrated(table, table, bars)
