"""The rule of early exit, against itself written out image by image."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compress.runtime.decision import fires, first_exit, leaves

TELLING = [0.0, 0.1, 0.25, 0.5, 0.8, 1.0, math.nan, math.inf, -math.inf]
VALUES = st.sampled_from(TELLING) | st.floats(0, 1, width=32)


@given(
    rows=st.lists(st.lists(VALUES, min_size=3, max_size=3), max_size=20),
    bars=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]), min_size=3, max_size=3),
    exits=st.none() | st.sets(st.integers(0, 2)),
)
def test_an_image_leaves_at_the_first_exit_that_is_checked_and_reached(rows, bars, exits):
    checked = sorted({0, 1, 2} if exits is None else exits)
    scores = np.array(rows, dtype=np.float32).reshape(-1, 3)
    expected = []
    for row in scores.tolist():  # float32 as the float64 that it is
        reached = [e for e, bar in zip(checked, bars, strict=False) if row[e] >= bar]
        expected.append(min(reached, default=3))
    numbers = None if exits is None else np.array(checked, dtype=np.int64)
    found = first_exit(scores, bars[: len(checked)], numbers)
    assert found.tolist() == expected
    assert found.dtype == np.int64


def test_the_example_of_the_docstring():
    assert first_exit(np.array([[0.2, 0.9, 0.95]]), [0.9] * 3).tolist() == [1]


def test_scores_are_compared_in_float64():
    """float32(0.8) is above 0.8, and float32(0.7) below 0.7."""
    scores = np.array([0.8, 0.7], dtype=np.float32)
    assert fires(scores, 0.8).tolist() == [True, False]
    assert fires(scores, 0.7).tolist() == [True, False]
    assert [leaves(score.item(), 0.7) for score in scores] == [True, False]


@given(score=VALUES, bar=st.floats(0, 1))
def test_one_image_is_decided_as_many_are(score, bar):
    score = np.float32(score)
    assert leaves(score.item(), bar) == fires(np.array([score]), bar)[0]
    assert fires(np.array([[score, score]]), [bar, bar]).tolist() == [
        [leaves(float(score), bar)] * 2
    ]


def test_a_network_without_exits_has_the_final_head():
    assert first_exit(np.empty((4, 0)), []).tolist() == [0] * 4
