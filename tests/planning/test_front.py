import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.exits.replay import decide
from compress.planning.archive import Archive
from compress.planning.block_table import block_table, fired_at, first_fired
from compress.planning.costs import costs_from_table, expected_cost
from compress.planning.cuts import Settings, pose_problem
from compress.planning.front import cuts_for, search_front
from compress.planning.outcomes import leaving
from compress.planning.uniform import subset_sums, uniform_settings
from tests.planning.plan_tables import (
    brute_force,
    floor_of,
    lifelike_table,
    noise_table,
    sorted_table,
)

VALUES = (0.0, 0.2, 0.35, 0.5, 0.62, 0.8, 0.95, 1.0)


def problem_of(table, cuts=99, also=()):
    costs = costs_from_table(table)
    return pose_problem(table.scores, table.correct, costs, cuts_per_exit=cuts, also=also)


def counted(table, chosen):
    """Successes and cost by the decisions of the early return."""
    taken = leaving(table, chosen)
    cost = expected_cost(costs_from_table(table), taken, np.array(chosen.exits, dtype=int))
    return int(table.correct[np.arange(len(table)), taken].sum()), cost * len(table)


def test_the_example_of_the_cuts():
    scores = np.array([[0.2], [0.6], [0.6], [0.9]], dtype=np.float32)
    problem = pose_problem(
        scores, np.ones((4, 2), bool), costs_from_table(noise_table(4, 1, 0)), cuts_per_exit=9
    )
    assert problem.cuts[0] == pytest.approx([0.1, 0.4, 0.75])
    assert problem.off.tolist() == [3]
    at = [problem.choice_of(Settings(exits=(0,), thresholds=(t,)))[0] for t in (0.1, 0.5, 0.95)]
    assert at == [0, 1, 3]
    assert problem.settings_of(np.array([3], dtype=np.int16)) == Settings(exits=(), thresholds=())


def test_cuts_stand_between_scores_even_in_float32():
    lower = np.float32(0.3)
    upper = np.nextafter(lower, np.float32(1))
    scores = np.array([[0.0], [lower], [upper]], dtype=np.float32)
    costs = costs_from_table(noise_table(3, 1, 0))
    problem = pose_problem(scores, np.ones((3, 2), bool), costs, cuts_per_exit=9)
    for place, cut in enumerate(problem.cuts[0]):
        assert (scores[:, 0] >= cut).sum() == 3 - place
        assert (scores[:, 0] >= np.float32(cut)).sum() == 3 - place


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.sampled_from([3, 8, 99]), data=st.data())
def test_blocks_count_what_the_early_return_decides(seed, cuts, data):
    table = noise_table(25, 4, seed)
    problem = problem_of(table, cuts)
    fixed = np.array([data.draw(st.integers(0, int(off))) for off in problem.off], dtype=np.int16)
    free = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1, max_size=3)))
    choices = [
        np.array(sorted({*data.draw(st.sets(st.integers(0, int(off)), max_size=4)), int(off)}))
        for off in problem.off[free]
    ]
    found = block_table(problem, fixed, fired_at(problem, fixed), free, choices)
    wholes = found.choice_at(fixed, np.arange(found.good.size))
    for whole, good, cost in zip(wholes, found.good.ravel(), found.cost.ravel(), strict=True):
        exact = counted(table, problem.settings_of(whole))
        assert (good, cost) == (exact[0], pytest.approx(exact[1], rel=1e-12))


def test_the_lowest_bit_is_the_first_exit():
    fired = np.array([0b1, 0b1010, 0b1000, 1 << 40])
    assert first_fired(fired).tolist() == [0, 1, 3, 40]


@pytest.mark.parametrize("value", VALUES)
def test_one_threshold_on_every_subset(value):
    table = noise_table(50, 4, 3)
    everything = uniform_settings(4, VALUES)
    problem = problem_of(table, 5, everything)
    chosen = Settings(exits=(0, 1, 2, 3), thresholds=(value,) * 4)
    good, cost = subset_sums(problem, fired_at(problem, problem.choice_of(chosen)))
    for bits in range(16):
        exits = tuple(e for e in range(4) if bits >> e & 1)
        at = counted(table, Settings(exits=exits, thresholds=(value,) * len(exits)))
        # An exit at which nobody fires at all is off, and its check is not paid.
        never = [e for e in exits if not (table.scores[:, e] >= value).any()]
        if not never:
            assert (good[bits], cost[bits]) == (at[0], pytest.approx(at[1]))
        else:
            assert good[bits] == at[0]


@pytest.mark.parametrize("seed", range(12))
def test_small_fronts_are_those_of_brute_force(seed):
    table = noise_table(7, 3, seed) if seed % 2 else lifelike_table(7, 3, seed)
    best = brute_force(table, costs_from_table(table))
    for exact_cells in (1 << 20, 0):  # counted whole, and searched
        front = search_front(problem_of(table), exact_cells=exact_cells)
        assert front.exact == (exact_cells > 0)
        for good in range(8):
            least = min((c for g, c in best.items() if g >= good), default=np.inf)
            assert floor_of(front, good) == pytest.approx(least, rel=1e-12)


def worst_gap(table, cuts, effort):
    """How much dearer the searched front is than the exact one, at worst."""
    problem = problem_of(table, cuts)
    exact = search_front(problem, exact_cells=1 << 22)
    searched = search_front(problem, exact_cells=0, effort=effort)
    assert exact.exact
    assert not searched.exact
    return max(floor_of(searched, g) / c - 1 for g, c in zip(exact.good, exact.cost, strict=True))


@pytest.mark.parametrize(
    ("make", "images", "exits", "cuts"),
    [(noise_table, 14, 5, 99), (noise_table, 300, 5, 8), (lifelike_table, 30, 4, 99),
     (lifelike_table, 400, 5, 9), (lifelike_table, 300, 6, 6), (lifelike_table, 2000, 4, 20)],
)  # fmt: skip
def test_searched_fronts_are_within_a_thousandth_of_exact_ones(make, images, exits, cuts):
    assert worst_gap(make(images, exits, 1), cuts, effort=0.1) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_searched_fronts_are_within_a_thousandth_of_exact_ones_on_more_tables(seed):
    assert worst_gap(noise_table(24, 4, seed), 99, effort=0.3) <= 1e-3
    assert worst_gap(noise_table(1000, 6, seed), 7, effort=0.3) <= 1e-3
    assert worst_gap(lifelike_table(2000, 5, seed), 14, effort=0.3) <= 1e-3
    assert worst_gap(lifelike_table(5000, 4, seed), 40, effort=0.3) <= 1e-3
    assert worst_gap(lifelike_table(1000, 6, seed), 9, effort=0.3) <= 1e-3


@pytest.mark.parametrize("make", [noise_table, lifelike_table])
def test_no_uniform_threshold_on_any_subset_is_better(make):
    table = make(150, 6, 5)
    also = uniform_settings(6, VALUES)
    front = search_front(problem_of(table, 6, also), uniform=VALUES, effort=1e-9, exact_cells=0)
    for size in range(1, 7):
        for exits in itertools.combinations(range(6), size):
            for value in VALUES:
                good, cost = counted(table, Settings(exits=exits, thresholds=(value,) * size))
                assert floor_of(front, good) <= cost * (1 + 1e-12)


def test_no_seed_is_better():
    table = lifelike_table(400, 6, 8, check=1)
    rng = np.random.default_rng(0)
    seeds = [
        Settings(exits=tuple(range(6)), thresholds=tuple((0.5 + rng.random(6) / 2).tolist()))
        for _ in range(20)
    ]
    front = search_front(problem_of(table, 5, seeds), seeds=seeds, effort=1e-9, exact_cells=0)
    for chosen in seeds:
        good, cost = counted(table, chosen)
        assert floor_of(front, good) <= cost * (1 + 1e-12)


def test_every_point_is_what_the_early_return_does():
    table = lifelike_table(500, 5, 2)
    front = search_front(problem_of(table, 12), effort=0.03, exact_cells=0)
    assert (np.diff(front.good) > 0).all()
    assert (np.diff(front.cost) > 0).all()
    for point in range(len(front)):
        good, cost = counted(table, front.settings(point))
        assert front.good[point] == good
        assert front.cost[point] == pytest.approx(cost, rel=1e-12)


def test_a_known_optimum_with_a_threshold_of_its_own_at_every_exit():
    groups, bars = (40, 30, 20, 10), (0.3, 0.8, 0.5)
    table = sorted_table(groups, bars)
    front = search_front(problem_of(table), exact_cells=0)
    # All right, and each leaves at the first exit that is right.
    assert front.good[-1] == 100
    assert front.cost[-1] == pytest.approx(100 * (40 * 1 + 30 * 2 + 20 * 3 + 10 * 4))
    chosen = front.settings(len(front) - 1)
    assert chosen.exits == (0, 1, 2)
    assert np.abs(np.array(chosen.thresholds) - bars).max() < 0.05
    one = [decide(table, value) for value in np.linspace(0, 1, 201)]
    all_right = [taken for taken in one if table.correct[np.arange(100), taken].all()]
    assert min(table.macs[taken].sum() for taken in all_right) > front.cost[-1]


@pytest.mark.parametrize(("check", "expected"), [(9, (0, 1)), (20, (0,)), (41, ())])
def test_an_exit_that_does_not_pay_is_left_out(check, expected):
    # Exit 0 lets 40 of 100 go and saves 200 each (or 100, where exit 1 takes them), exit 1 takes
    # 10 of the 60 that come, 100 each: a check there pays below 1000 / 60 = 16.7.
    table = sorted_table((20, 10, 70), (0.5, 0.5), check)
    front = search_front(problem_of(table))
    assert front.settings(len(front) - 1).exits == expected


def test_scores_that_are_no_numbers_never_leave():
    table = noise_table(30, 2, 1)
    table.scores[:, 0] = np.nan
    front = search_front(problem_of(table))
    assert all(0 not in front.settings(point).exits for point in range(len(front)))


def test_budget_and_accuracy_read_the_front_from_both_sides():
    front = search_front(problem_of(sorted_table((40, 30, 20, 10), (0.3, 0.8, 0.5))))
    assert front.best(front.cost[0] * 0.99) is None
    assert front.cheapest(101) is None
    for point in range(len(front)):
        assert front.best(front.cost[point]) == point
        assert front.cheapest(front.good[point]) == point


def test_an_archive_keeps_the_cheapest_of_every_count():
    archive = Archive(5, 1)
    names = np.arange(6, dtype=np.int16)[:, None]
    good, cost = np.array([1.0, 3, 3, 2, 5, 0]), np.array([5.0, 4, 3, 9, 8, 3])
    assert archive.add(good, cost, lambda at: names[at]) == 2
    assert archive.front().tolist() == [3, 5]
    assert archive.choices[[3, 5], 0].tolist() == [2, 4]
    assert archive.floor.tolist() == [3, 3, 3, 3, 8, 8]
    assert archive.add(np.array([4.0]), np.array([8.0]), lambda at: names[at]) == 0
    assert archive.add(np.array([4.0]), np.array([7.0]), lambda at: names[at]) == 1
    assert archive.front().tolist() == [3, 4, 5]


def test_cuts_are_as_many_as_can_be_counted():
    for exits in (1, 2, 3):
        assert (cuts_for(exits) + 1) ** exits <= 1 << 22
    assert cuts_for(2, besides=101) == cuts_for(2) - 101
    assert cuts_for(11) == cuts_for(11, besides=101) == 64


def test_a_search_finds_the_same_twice():
    problem = problem_of(lifelike_table(200, 5, 4), 12)
    one, two = (search_front(problem, exact_cells=0, effort=0.01) for _ in range(2))
    assert (one.choices == two.choices).all()
    assert (one.cost == two.cost).all()
