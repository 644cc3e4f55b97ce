import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import AccuracyError, UserInputError
from compress.exits.sweep import choose_threshold, evaluate_at
from compress.planning.costs import ExitCosts, costs_from_table
from compress.planning.guarantee import Risk, clopper_pearson, p_value
from compress.planning.outcomes import leaving
from compress.planning.plan import Objective, read_plan, write_plan
from compress.planning.planner import measure_plan, plan_exits, plan_with_guarantee
from compress.planning.points import hand_made_settings, plan_front
from tests.planning.plan_tables import brute_force, free_checks, lifelike_table, sorted_table

VALUES = tuple(i / 20 for i in range(21))
PLANNERS = ("search", "stopping", "uniform", "hand-made")


@pytest.fixture(scope="module")
def table():
    return lifelike_table(1500, 5, 11)


@pytest.fixture(scope="module")
def front(table):
    hand_made = hand_made_settings(table, (1, 3), (0.6, 0.7))
    costs = costs_from_table(table)
    return plan_front(table, costs, uniform=VALUES, hand_made=hand_made, effort=0.1)


def drop(value):
    return Objective(kind="max-drop", value=value)


@pytest.mark.parametrize("value", [0.0, 0.5, 2.0, 20.0])
def test_the_search_is_cheapest_at_equal_accuracy(table, front, value):
    costs = costs_from_table(table)
    plans = {p: plan_exits(table, costs, drop(value), planner=p, front=front) for p in PLANNERS}
    for plan in plans.values():
        assert plan.accuracy.drop <= value + 1e-9
        assert plans["search"].cost.expected <= plan.cost.expected * (1 + 1e-12)
    bar = choose_threshold(table, VALUES, max_drop=value)
    report = evaluate_at(table, bar)
    if report.acc1 >= plans["search"].accuracy.full_acc1 - value:
        assert plans["search"].cost.expected <= report.expected_macs * (1 + 1e-12)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_search_is_best_at_equal_cost(table, front, share):
    costs, objective = costs_from_table(table), Objective(kind="budget", value=share)
    best = plan_exits(table, costs, objective, front=front)
    assert best.cost.share <= share
    for planner in ("stopping", "uniform"):
        plan = plan_exits(table, costs, objective, planner=planner, front=front)
        assert plan.cost.share <= share
        assert plan.accuracy.correct <= best.accuracy.correct
    absolute = Objective(kind="budget-cost", value=share * costs.full)
    assert plan_exits(table, costs, absolute, front=front).thresholds == best.thresholds


def test_figures_of_a_plan_are_those_of_the_sweep(table, front):
    costs = costs_from_table(table)
    for planner in PLANNERS:
        plan = plan_exits(table, costs, drop(3.0), planner=planner, front=front, seed=4)
        if not plan.exits:
            assert plan.cost.share == 1
            assert plan.exit_rates == (1.0,)
            continue
        report = evaluate_at(table, plan.thresholds, positions=plan.exits)
        assert plan.cost.expected == pytest.approx(report.expected_macs, rel=1e-12)
        assert plan.cost.share == pytest.approx(report.macs_share, rel=1e-12)
        assert plan.accuracy.correct == sum(report.correct)
        assert plan.exit_rates == pytest.approx([rate / 100 for rate in report.rates])
        assert plan.accuracy.interval == clopper_pearson(sum(report.correct), 1500, 0.95)
        assert plan.accuracy.full_correct == table.correct[:, -1].sum()
        assert (plan.planner, plan.seed, plan.source) == (planner, 4, table.source)
        assert not plan.accuracy.held_out
        assert plan.guarantee is None


def test_points_hold_every_planner_and_are_json(table, front):
    shown = json.loads(json.dumps(front.to_dict(), allow_nan=False))
    assert set(shown["points"]) == set(PLANNERS)
    assert shown["points"]["hand-made"][0]["exits"] == [1, 3]
    assert len(shown["points"]["uniform"]) == len(VALUES)
    assert shown["full_acc1"] == pytest.approx(100 * table.correct[:, -1].mean())
    for points in shown["points"].values():
        costs = [point["cost"] for point in points]
        assert costs == sorted(costs)
    found = {(p["cost"], p["correct"]) for p in shown["points"]["search"]}
    per_image = front.search.cost / 1500
    for cost, correct in found:  # decided anew, the search's own figures come out
        at = int(np.abs(per_image - cost).argmin())
        assert per_image[at] == pytest.approx(cost, rel=1e-12)
        assert front.search.good[at] == correct


def test_plans_can_be_written(table, front, tmp_path):
    costs = costs_from_table(table)
    plan = plan_exits(table, costs, drop(1.0), front=front)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


def test_known_optimum_through_the_whole_planner():
    table = sorted_table((40, 30, 20, 10), (0.3, 0.8, 0.5))
    plan = plan_exits(table, free_checks(3), drop(0.0))
    assert plan.exits == (0, 1, 2)
    assert plan.cost.expected == pytest.approx(2.0)
    assert plan.exit_rates == pytest.approx((0.4, 0.3, 0.2, 0.1))
    assert plan.accuracy.correct == 100


@pytest.mark.parametrize("share", [0.3, 0.375, 0.45, 0.6])
def test_the_best_within_a_budget_is_that_of_brute_force(share):
    table, costs = sorted_table((4, 3, 2, 1), (0.3, 0.8, 0.5)), free_checks(3)
    best = brute_force(table, costs)
    most = max(good for good, cost in best.items() if cost <= share * 40 + 1e-9)
    plan = plan_exits(table, costs, Objective(kind="budget", value=share))
    assert plan.accuracy.correct == most
    assert plan.cost.expected == pytest.approx(best[most] / 10)


@pytest.mark.parametrize("planner", ["search", "uniform"])
def test_a_plan_chosen_by_other_images_flatters_itself_less(planner):
    population = lifelike_table(40_000, 5, 77)
    costs = costs_from_table(population)
    whole = 100 * population.correct[:, -1].mean()
    excess = {True: [], False: []}
    for seed in range(4):
        few = lifelike_table(600, 5, seed)
        for held_out, gaps in excess.items():
            plan = plan_exits(
                few, costs, drop(1.0), planner=planner, held_out=held_out, uniform=VALUES,
                seed=seed, effort=0.02,
            )  # fmt: skip
            found = measure_plan(plan, population, costs)
            gaps.append(whole - found.acc1 - plan.accuracy.drop)
            assert plan.accuracy.held_out == held_out
            assert plan.accuracy.images == (300 if held_out else 600)
            assert plan.accuracy.drop <= 1.0 + 1e-9
            assert plan.planner in (PLANNERS if planner == "search" else (planner,))
    if planner == "search":
        assert np.mean(excess[True]) < 0.75 * np.mean(excess[False])


def any_plan(table, costs, how, seed):
    """A plan by any of the ways; None where nothing can be certified."""
    small = {"uniform": VALUES, "seed": seed, "effort": 0.02}
    if how in ("pareto-testing", "fixed-sequence"):
        risk = Risk(loss="consistency", risk=0.15, confidence=0.9)
        try:
            return plan_with_guarantee(table, costs, risk, method=how, **small)
        except AccuracyError:
            return None
    planner, _, held_out = how.partition("/")
    return plan_exits(table, costs, drop(1.0), planner=planner, held_out=bool(held_out), **small)


HOWS = (
    "search", "search/held-out", "stopping", "uniform", "uniform/held-out", "pareto-testing",
    "fixed-sequence",
)  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_no_plan_has_an_exit_that_no_calibration_image_takes(how, seed, data):
    table = lifelike_table(200, 4, seed)
    table.scores[:] *= data.draw(st.sampled_from([1.0, 0.9]))  # who reaches careful thresholds
    shy = data.draw(st.sets(st.integers(0, 3), max_size=2))
    for exit_ in shy:  # it scores below a bar of one threshold for all, or not at all
        table.scores[:, exit_] = data.draw(st.sampled_from([0.0, np.nan]))
    plan = any_plan(table, costs_from_table(table), how, seed)
    if plan is None:
        return
    settings_ = hand_made_settings(table, plan.exits, plan.thresholds) if plan.exits else None
    used = set() if settings_ is None else set(leaving(table, settings_).tolist())
    assert used >= set(plan.exits)
    if how != "pareto-testing":  # whose rates are of the other half alone
        assert all(rate > 0 for rate in plan.exit_rates[:-1])


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_plan_is_cheaper_than_the_whole_network_or_is_the_whole_network(how, seed, data):
    table = lifelike_table(200, 3, seed)
    costs = ExitCosts(
        segments=np.array([1.0, 1.0, 1.0, 1.0]),
        checks=np.array(data.draw(st.lists(st.floats(0, 3), min_size=3, max_size=3))),
        unit="ms",
        source="made up",
        whole=data.draw(st.sampled_from([None, 0.5, 2.0, 3.9])),
    )
    plan = any_plan(table, costs, how, seed)
    if plan is None:
        return
    assert plan.cost.full == costs.full
    if plan.exits:
        assert plan.cost.expected < costs.full
        assert plan.refused is None
    else:
        assert plan.cost.expected == costs.full
        assert plan.accuracy.correct == plan.accuracy.full_correct
        assert plan.exit_rates == (1.0,)
    if plan.refused is not None:
        assert plan.refused.expected >= costs.full


def test_exits_that_save_nothing_are_refused_and_told():
    table = sorted_table((40, 30, 20, 10), (0.3, 0.8, 0.5))
    costs = replace(free_checks(3), unit="ms", whole=1.5)
    plan = plan_exits(table, costs, drop(0.0))
    # With exits it takes 2 ms on average, two segments of 1 ms; in one piece 1.5 ms.
    assert (plan.exits, plan.thresholds, plan.cost.expected) == ((), (), 1.5)
    assert plan.refused is not None
    assert plan.refused.exits == (0, 1, 2)
    assert plan.refused.expected == pytest.approx(2.0)
    cheap = plan_exits(table, replace(costs, whole=2.05), drop(0.0))
    assert (cheap.exits, cheap.refused) == ((0, 1, 2), None)
    assert cheap.cost.share == pytest.approx(2 / 2.05)


def test_a_budget_below_the_first_exit_is_refused(table, front):
    costs = costs_from_table(table)
    cheapest = (costs.segments[0] + costs.checks[0]) / costs.full
    for planner in ("search", "uniform"):
        with pytest.raises(UserInputError, match=f"expected at least .*{cheapest:.4f}"):
            plan_exits(
                table, costs, Objective(kind="budget", value=0.01), planner=planner, front=front
            )


def test_arguments_that_do_not_fit(table, front):
    costs = costs_from_table(table)
    with pytest.raises(UserInputError, match="guarantee"):
        plan_exits(table, costs, Objective(kind="risk", value=0.1), front=front)
    with pytest.raises(UserInputError, match="planner 'luck'"):
        plan_exits(table, costs, drop(1), planner="luck", front=front)
    with pytest.raises(UserInputError, match="2 exits, the replay table has 5"):
        plan_front(table, free_checks(2))
    with pytest.raises(UserInputError, match=r"threshold is 1\.5"):
        plan_front(table, costs, uniform=[0.5, 1.5])
    with pytest.raises(UserInputError, match="--exits"):
        hand_made_settings(table, (3, 1), 0.5)
    with pytest.raises(UserInputError, match="method"):
        plan_with_guarantee(
            table, costs, Risk(loss="accuracy", risk=0.1, confidence=0.9), method="luck"
        )


@pytest.mark.parametrize("loss", ["consistency", "accuracy"])
@pytest.mark.parametrize("method", ["pareto-testing", "fixed-sequence"])
def test_a_plan_with_a_guarantee(table, loss, method, tmp_path):
    costs, risk = costs_from_table(table), Risk(loss=loss, risk=0.06, confidence=0.95)
    plan = plan_with_guarantee(
        table, costs, risk, method=method, uniform=VALUES, seed=2, effort=0.05
    )
    found = plan.guarantee
    assert plan.exits
    assert plan.cost.share < 1
    assert plan.objective == Objective(kind="risk", value=0.06)
    assert found.images == plan.accuracy.images == (750 if method == "pareto-testing" else 1500)
    assert plan.accuracy.held_out == (method == "pareto-testing")
    assert found.p_value == p_value(found.violations, found.images, 0.06) <= 0.05
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    again = measure_plan(plan, table, costs)
    if method == "fixed-sequence":
        assert (again.cost, again.correct) == (plan.cost.expected, plan.accuracy.correct)
        assert plan.exits == table.positions
        some = plan_with_guarantee(table, costs, risk, method=method, exits=(2, 4), uniform=VALUES)
        assert some.exits == (2, 4)


def test_too_few_images_for_a_guarantee_say_how_many_are_needed():
    table = lifelike_table(120, 3, 0)
    costs, risk = costs_from_table(table), Risk(loss="accuracy", risk=0.01, confidence=0.95)
    with pytest.raises(AccuracyError, match="about 598 calibration images are needed"):
        plan_with_guarantee(table, costs, risk, effort=0.01)
    with pytest.raises(AccuracyError, match="lose 0 of 120 images; about 299"):
        plan_with_guarantee(table, costs, risk, method="fixed-sequence", uniform=[1.0])


def test_exits_that_always_lose_are_told_so():
    table = lifelike_table(500, 2, 0)
    table.scores[:] = 1.0  # every threshold lets everyone go
    risk = Risk(loss="consistency", risk=0.01, confidence=0.95)
    with pytest.raises(AccuracyError, match="no number of images"):
        plan_with_guarantee(table, costs_from_table(table), risk, method="fixed-sequence")


def test_a_plan_is_measured_on_other_images(table, front):
    costs = costs_from_table(table)
    plan = plan_exits(table, costs, drop(1.0), front=front)
    other = lifelike_table(800, 5, 12)
    report = evaluate_at(other, plan.thresholds, positions=plan.exits)
    point = measure_plan(plan, other, costs)
    assert point.acc1 == pytest.approx(report.acc1)
    assert point.cost == pytest.approx(report.expected_macs)
    none = replace(plan, exits=(), thresholds=())
    assert measure_plan(none, other, costs).share == 1
    with pytest.raises(UserInputError, match="--exits"):
        measure_plan(replace(plan, exits=(0, 77), thresholds=(0.5, 0.5)), other, costs)
