import inspect
import itertools
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compress.errors import UserInputError
from compress.planning import guarantee
from compress.planning.cuts import Settings
from compress.planning.guarantee import (
    Risk,
    clopper_pearson,
    images_needed,
    p_value,
    pareto_testing,
    passed_before_failure,
    uniform_testing,
)
from compress.planning.outcomes import harmless, leaving, right
from tests.exits.tables import random_table
from tests.planning.plan_tables import free_checks, lifelike_table, noise_table, table_from

DRAWS = 1000
CONFIDENCE = 0.95
# So many of 1000 draws may violate at a true rate of 5 %, but for one time in 1000.
TOLERATED = int(stats.binom.ppf(0.999, DRAWS, 1 - CONFIDENCE))

# Risk along the order; only what is above 0.01 violates.
RISKS = {
    "rising": np.linspace(0.001, 0.03, 30),
    "at once bad": np.full(20, 0.0101),
    "just above the boundary": np.array([0.001, *[0.01 + 1e-6] * 10]),
    "exactly at the boundary, then above": np.array([*[0.01] * 5, *[0.0100001] * 20]),
    "pits between hills": np.tile([0.002, 0.02, 0.0105, 0.001, 0.011], 12),
    "one hill, then safe for long": np.array([0.001, 0.03, *[0.0103] * 60]),
    "falling": np.linspace(0.03, 0.001, 30),
}


def violation_rate(rule, risks, *, images, tied, seed=0):
    """In how many of 1000 draws the last candidate that `rule` certifies is above the risk."""
    rng = np.random.default_rng(seed)
    bad = 0
    for _ in range(DRAWS):
        if tied:  # one set of images for all: an image loses where its luck is below the risk
            luck = rng.random(images)
            lost = np.searchsorted(np.sort(luck), risks)
        else:
            lost = rng.binomial(images, risks)
        passed = rule(lost, images, risk=0.01, confidence=CONFIDENCE)
        bad += passed > 0 and risks[passed - 1] > 0.01
    return bad


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("images", [299, 1000])  # 299: one loss more or less is 5 % or 20 %
@pytest.mark.parametrize("name", RISKS)
def test_the_guarantee_holds_for_losses_built_to_break_it(name, images, tied):
    risks = RISKS[name]
    assert violation_rate(passed_before_failure, risks, images=images, tied=tied) <= TOLERATED


MUTATIONS = {
    "the first that fails": ("int(failed[0]) if", "int(failed[0]) + 1 if"),
    "the last that passes anywhere": (
        "failed = np.flatnonzero(p_values > 1 - confidence)",
        "failed = np.flatnonzero(p_values <= 1 - confidence)[-1:] + 1",
    ),
    "the observed loss": (
        "p_values > 1 - confidence", "np.array(violations) / images > risk"
    ),
    "the lower tail without its own value": ("np.array(violations)", "np.array(violations) - 1"),
}  # fmt: skip


def mutated(name):
    old, new = MUTATIONS[name]
    source = inspect.getsource(passed_before_failure)
    assert source.count(old) == 1
    scope = dict(vars(guarantee))
    exec(source.replace(old, new), scope)
    return scope["passed_before_failure"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_finds_sloppy_code(name):
    rule = mutated(name)
    worst = max(
        violation_rate(rule, risks, images=images, tied=False)
        for risks in RISKS.values()
        for images in (299, 1000)
    )
    assert worst > 2 * TOLERATED


def test_the_example_of_the_module():
    assert p_value(4, 1000, 0.01) == pytest.approx(0.029, abs=5e-4)
    assert p_value(5, 1000, 0.01) == pytest.approx(0.066, abs=5e-4)
    assert passed_before_failure([0, 2, 4, 7, 3], 1000, risk=0.01, confidence=0.95) == 3
    assert passed_before_failure([7, 0], 1000, risk=0.01, confidence=0.95) == 0
    assert passed_before_failure([0, 0], 1000, risk=0.01, confidence=0.95) == 2
    assert passed_before_failure([], 1000, risk=0.01, confidence=0.95) == 0


@pytest.mark.parametrize(
    ("risk", "images", "most"),
    [(0.01, 1000, 4), (0.01, 2000, 12), (0.01, 5000, 38), (0.01, 10000, 83), (0.005, 1000, 1),
     (0.005, 5000, 16), (0.005, 10000, 38), (0.02, 500, 4), (0.02, 1000, 12), (0.02, 5000, 83)],
)  # fmt: skip
def test_largest_numbers_of_losses_that_pass(risk, images, most):
    rule = {"risk": risk, "confidence": 0.95}
    assert passed_before_failure([most], images, **rule) == 1
    assert passed_before_failure([most + 1], images, **rule) == 0


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 60), risk=st.floats(0.01, 0.99), data=st.data())
def test_p_values_are_binomial_sums(images, risk, data):
    lost = data.draw(st.integers(0, images))
    terms = [comb(images, k) * risk**k * (1 - risk) ** (images - k) for k in range(lost + 1)]
    assert p_value(lost, images, risk) == pytest.approx(sum(terms), rel=1e-9)


@pytest.mark.parametrize(("risk", "images"), [(0.01, 299), (0.005, 598), (0.05, 59), (0.1, 29)])
def test_images_needed_without_any_loss(risk, images):
    assert images_needed(risk, 0.95) == images


@settings(max_examples=40, deadline=None)
@given(risk=st.floats(0.02, 0.5), share=st.floats(0, 0.8), confidence=st.floats(0.5, 0.99))
def test_images_needed_are_the_first_that_do(risk, share, confidence):
    found = images_needed(risk, confidence, risk * share)
    sizes = np.arange(1, found + 1)
    passes = stats.binom.cdf(np.floor(sizes * (risk * share)), sizes, risk) <= 1 - confidence
    assert passes[-1]
    assert not passes[:-1].any()


def test_no_number_of_images_certifies_a_loss_above_the_risk():
    assert images_needed(0.01, 0.95, 0.01) is None
    assert images_needed(0.01, 0.95, 0.5) is None
    assert (
        images_needed(0.01, 0.95, 0.00999999) is None
        or images_needed(0.01, 0.95, 0.00999999) > 10**9
    )


@pytest.mark.parametrize(("successes", "images"), [(0, 10), (10, 10), (7, 10), (950, 1000)])
def test_clopper_pearson_against_its_definition(successes, images):
    low, high = clopper_pearson(successes, images, 0.95)
    if successes:
        assert stats.binom.sf(successes - 1, images, low) == pytest.approx(0.025)
    if successes < images:
        assert stats.binom.cdf(successes, images, high) == pytest.approx(0.025)
    assert 0 <= low <= successes / images <= high <= 1


def test_losses_by_hand():
    #        exit 0 right, whole network right
    pairs = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    table = table_from(pairs, np.full((4, 1), 0.5))
    assert harmless(table, "accuracy")[:, 0].tolist() == [True, True, False, True]
    assert harmless(table, "consistency")[:, 0].tolist() == [True, False, False, True]
    assert harmless(table, "consistency")[:, 1].all()
    assert harmless(table, "accuracy")[:, 1].all()
    with pytest.raises(UserInputError, match="loss"):
        harmless(table, "brier")


def test_logits_that_are_no_numbers_lose():
    table = random_table(10_000, 2, 3, 0)
    table.logits[::3, 0, 1] = np.nan
    assert (right(table) == table.correct).all()
    assert not harmless(table, "consistency")[::3, 0].any()


@pytest.mark.parametrize("loss", ["consistency", "accuracy"])
def test_one_threshold_is_tested_from_the_highest_down(loss):
    table = lifelike_table(4000, 3, 0)
    risk = Risk(loss=loss, risk=0.05, confidence=0.95)
    tested = uniform_testing(table, risk, exits=(1, 2), values=[0.5, 0.9, 0.7, 1.0, 0.9])
    assert [one.thresholds[0] for one in tested.candidates] == [1.0, 0.9, 0.7, 0.5]
    said = table.logits.argmax(axis=2)
    for candidate, lost in zip(tested.candidates, tested.violations, strict=True):
        expected = np.zeros(4000, dtype=bool)  # of those whom any exit lets go as another class
        for exit_ in (1, 2):
            goes = table.scores[:, exit_] >= candidate.thresholds[0]
            if loss == "consistency":
                expected |= goes & (said[:, exit_] != said[:, -1])
            else:
                right = said[:, -1] == table.labels
                expected |= goes & right & (said[:, exit_] != table.labels)
        assert lost == expected.sum()
    values = [p_value(lost, 4000, 0.05) <= 0.05 for lost in tested.violations]
    assert tested.passed == (values.index(False) if False in values else len(values))
    assert tested.certified == tested.candidates[tested.passed - 1]


def test_in_a_fixed_sequence_no_subset_of_the_exits_loses_more():
    """So whichever exit is left out afterwards, what was tested bounds what remains."""
    risk = Risk(loss="consistency", risk=0.05, confidence=0.95)
    stricter = 0
    for seed in range(8):
        table = noise_table(300, 4, seed)
        safe = harmless(table, "consistency")
        tested = uniform_testing(table, risk, exits=range(4), values=[0.9, 0.7, 0.4])
        for candidate, lost in zip(tested.candidates, tested.violations, strict=True):
            most = 0
            for size in range(1, 5):
                for exits in itertools.combinations(range(4), size):
                    some = Settings(exits=exits, thresholds=candidate.thresholds[:size])
                    taken = leaving(table, some)
                    most = max(most, int((~safe[np.arange(300), taken]).sum()))
            assert lost >= most
            whole = ~safe[np.arange(300), leaving(table, candidate)]
            stricter += most > whole.sum()
    assert stricter  # or counting as one exit after another decides would have been enough


def test_candidates_have_no_exit_that_the_finding_half_does_not_take():
    table = lifelike_table(800, 4, 2)
    table.scores[:] *= 0.9  # so that nobody reaches the most careful thresholds
    table.scores[:, 1] = np.nan  # and nobody ever leaves here
    risk = Risk(loss="consistency", risk=0.05, confidence=0.95)
    tested = pareto_testing(table, free_checks(4), risk, cuts_per_exit=12)
    finding = np.setdiff1d(np.arange(800), tested.images)
    for candidate in tested.candidates:
        assert set(leaving(table, candidate)[finding].tolist()) >= set(candidate.exits)
    assert len(set(tested.candidates)) == len(tested.candidates)


def test_too_few_images_say_how_many_are_needed():
    table = lifelike_table(100, 2, 0)
    risk = Risk(loss="consistency", risk=0.01, confidence=0.95)
    tested = uniform_testing(table, risk, exits=(0, 1), values=[1.0])
    assert tested.certified is None
    assert tested.needed() == 299


def drawn_from(population, images, rng):
    chosen = rng.integers(0, len(population), images)
    return replace(
        population,
        logits=population.logits[chosen],
        scores=population.scores[chosen],
        labels=population.labels[chosen],
    )


def noisy_population():
    """Gates know nothing, so every choice that looks safe on some images is luck."""
    rng = np.random.default_rng(7)
    final = rng.random(3000) < 0.95
    early = np.where(rng.random((3000, 3)) < 0.1, ~final[:, None], final[:, None])
    return table_from(np.column_stack([early, final]), rng.random((3000, 3)).round(3))


def pareto_violations(population, draws):
    """In how many draws the certified choice loses more than the risk on the population."""
    rng = np.random.default_rng(3)
    risk = Risk(loss="consistency", risk=0.03, confidence=CONFIDENCE)
    safe = harmless(population, "consistency")
    bad = certified = 0
    for seed in range(draws):
        table = drawn_from(population, 200, rng)
        tested = pareto_testing(table, free_checks(3), risk, seed=seed, cuts_per_exit=12)
        if tested.certified is not None:
            certified += 1
            taken = leaving(population, tested.certified)
            bad += (~safe[np.arange(len(population)), taken]).mean() > risk.risk
    return bad, certified


@pytest.mark.slow
@pytest.mark.parametrize("make", [noisy_population, lambda: lifelike_table(3000, 3, 5)])
def test_pareto_testing_keeps_its_word(make):
    bad, certified = pareto_violations(make(), DRAWS)
    assert bad <= TOLERATED
    assert certified > DRAWS / 2


def test_testing_on_the_half_that_found_the_front_is_found_out(monkeypatch):
    halves = guarantee.halves
    monkeypatch.setattr(guarantee, "halves", lambda n, seed: (halves(n, seed)[0],) * 2)
    bad, _ = pareto_violations(noisy_population(), 300)
    assert bad > 1.5 * stats.binom.ppf(0.999, 300, 1 - CONFIDENCE)


def test_pareto_testing_leaves_the_other_half_alone():
    table = lifelike_table(2000, 3, 1)
    risk = Risk(loss="accuracy", risk=0.05, confidence=0.9)
    one = pareto_testing(table, free_checks(3), risk, seed=1, cuts_per_exit=12)
    assert len(one.images) == 1000
    # The order may not depend on a single image of the half that tests.
    table.logits[one.images] = 0
    two = pareto_testing(table, free_checks(3), risk, seed=1, cuts_per_exit=12)
    assert one.candidates == two.candidates
    assert one.violations != two.violations


def test_careful_steps_come_first():
    table = lifelike_table(600, 2, 3)
    risk = Risk(loss="consistency", risk=0.05, confidence=0.95)
    tested = pareto_testing(table, free_checks(2), risk, cuts_per_exit=12)
    first = tested.candidates[0]
    front = next(one for one in tested.candidates[7:] if one.exits)
    assert first.exits == front.exits
    assert first.thresholds == pytest.approx([1 - (1 - bar) / 8 for bar in front.thresholds])


def test_risks_out_of_range():
    good = Risk(loss="accuracy", risk=0.01, confidence=0.95)
    for change in ({"loss": "x"}, {"risk": 0}, {"risk": 1}, {"confidence": float("nan")}):
        with pytest.raises(UserInputError, match="expected"):
            replace(good, **change)
    with pytest.raises(UserInputError, match="halves"):
        pareto_testing(lifelike_table(1, 2, 0), free_checks(2), good)


def test_settings_of_no_exits_are_the_whole_network():
    table = lifelike_table(20, 2, 0)
    assert (leaving(table, Settings(exits=(), thresholds=())) == 2).all()
