import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.planning.costs import ExitCosts, costs_from_table, expected_cost
from compress.planning.cuts import Settings, pose_problem
from compress.planning.front import search_front
from compress.planning.outcomes import leaving
from compress.planning.stopping import PRICES, stopping_rule, stopping_rules
from tests.planning.plan_tables import (
    floor_of,
    free_checks,
    lifelike_table,
    noise_table,
    sorted_table,
    table_from,
)


def problem_of(table, costs=None, cuts=99):
    costs = costs or costs_from_table(table)
    return pose_problem(table.scores, table.correct, costs, cuts_per_exit=cuts)


def test_the_example_of_the_module():
    # P(right | s) is 0.2, 0.4, 0.6, 0.8 at scores 0.2, 0.4, 0.6, 0.8, ten images each.
    scores = np.repeat([0.2, 0.4, 0.6, 0.8], 10)
    early = np.tile(np.arange(10), 4) < np.repeat([2, 4, 6, 8], 10)
    table = table_from(np.stack([early, np.ones(40, bool)], axis=1), scores[:, None])
    costs = ExitCosts(
        segments=np.array([0.5, 0.5]), checks=np.array([0.0]), unit="ms", source="made up"
    )
    rule = stopping_rule(problem_of(table, costs), price=1.0)
    assert rule.thresholds == pytest.approx((0.5,))
    assert stopping_rule(problem_of(table, costs), price=0.0) == Settings(exits=(), thresholds=())
    # At a price of 1.3 going on costs 0.65, and P(right | 0.4) = 0.4 is enough.
    assert stopping_rule(problem_of(table, costs), price=1.3).thresholds == pytest.approx((0.3,))


def test_where_leaving_and_going_on_are_equal_nobody_leaves():
    scores = np.repeat([0.2, 0.6, 0.8], 10)
    early = np.tile(np.arange(10), 3) < np.repeat([2, 5, 8], 10)
    table = table_from(np.stack([early, np.ones(30, bool)], axis=1), scores[:, None])
    rule = stopping_rule(problem_of(table, free_checks(1)), price=1.0)
    assert rule.thresholds == pytest.approx((0.7,))


@pytest.mark.parametrize(("check", "expected"), [(0.05, (1,)), (0.2, (0, 1))])
def test_the_checks_behind_an_exit_count_for_it(check, expected):
    # Exit 0 is wrong 3 times in 10; going on to exit 1, always right, costs 0.2 and its check.
    right = np.ones((10, 3), bool)
    right[:3, 0] = False
    costs = ExitCosts(
        segments=np.array([0.2, 0.2, 0.6]), checks=np.array([0, check]), unit="ms", source="x"
    )
    table = table_from(right, np.full((10, 2), 0.5))
    assert stopping_rule(problem_of(table, costs), price=1.0).exits == expected


def test_known_optimum_when_gates_know():
    table = sorted_table((40, 30, 20, 10), (0.3, 0.8, 0.5))
    rule = stopping_rule(problem_of(table), price=0.1)
    taken = leaving(table, rule)
    assert taken.tolist() == np.repeat([0, 1, 2, 3], (40, 30, 20, 10)).tolist()


@pytest.mark.parametrize(("check", "expected"), [(9, (0, 1)), (35, (0,)), (150, ())])
def test_an_exit_that_does_not_pay_is_off(check, expected):
    # All images count, also those that exit 0 takes: exit 1 seems to pay up to 100 * 0.3.
    table = sorted_table((20, 10, 70), (0.5, 0.5), check)
    assert stopping_rule(problem_of(table), price=0.01).exits == expected


def value_of(table, costs, rule, price):
    """Errors and price times share of cost, of an image."""
    taken = leaving(table, rule)
    wrong = 1 - table.correct[np.arange(len(table)), taken].mean()
    spent = expected_cost(costs, taken, np.array(rule.exits, dtype=int))
    return wrong + price * spent / costs.full


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), price=st.floats(0, 3))
def test_with_one_exit_it_is_the_best_threshold(seed, price):
    """The cut that an isotonic fit changes sign at is the cut of the least sum."""
    table = lifelike_table(40, 1, seed)
    # Where the final head is always right the value of going on is a constant.
    table.logits[:, -1] = 0
    table.logits[np.arange(40), -1, table.labels] = 3
    costs = costs_from_table(table)
    rule = stopping_rule(problem_of(table), price)
    bars = np.unique(table.scores[:, 0]).astype(float)
    others = [Settings(exits=(0,), thresholds=(bar,)) for bar in bars]
    others.append(Settings(exits=(), thresholds=()))
    best = min(value_of(table, costs, other, price) for other in others)
    assert value_of(table, costs, rule, price) == pytest.approx(best, abs=1e-12)


def test_on_lifelike_tables_its_front_is_next_to_the_searched_one():
    table = lifelike_table(2000, 4, 0)
    costs, problem = costs_from_table(table), problem_of(table, cuts=30)
    front = search_front(problem)
    assert front.exact
    gaps = []
    for rule in stopping_rules(problem):
        taken = leaving(table, rule)
        good = int(table.correct[np.arange(2000), taken].sum())
        cost = expected_cost(costs, taken, np.array(rule.exits, dtype=int)) * 2000
        gaps.append(cost / floor_of(front, good) - 1)
    assert min(gaps) >= -1e-12
    assert np.median(gaps) < 0.03


def test_a_higher_price_never_costs_more():
    table = lifelike_table(2000, 4, 1)
    costs, problem = costs_from_table(table), problem_of(table, cuts=60)
    spent = [
        expected_cost(costs, leaving(table, rule), np.array(rule.exits, dtype=int))
        for rule in (stopping_rule(problem, price) for price in PRICES)
    ]
    rises = [b - a for a, b in itertools.pairwise(spent) if b > a]
    assert sum(rises) <= 0.01 * costs.full


def test_scores_that_are_no_numbers_never_leave():
    table = noise_table(60, 3, 0)
    table.scores[:, 1] = np.nan
    for rule in stopping_rules(problem_of(table)):
        assert 1 not in rule.exits
