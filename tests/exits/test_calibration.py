import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss, roc_auc_score

from compress.exits.calibration import (
    calibrate,
    calibrate_gated,
    expected_calibration_error,
    fit_temperature,
    gate_auroc,
    oracle,
)
from compress.exits.replay import decide
from tests.exits.tables import random_table, table_of


def logits_of(confidence: float, right: int, images: int, classes: int = 2):
    """Two-class logits with one confidence throughout, of which `right` are right."""
    odds = np.log(confidence / (1 - confidence))
    labels = np.where(np.arange(images) < right, 0, 1)
    return np.tile(np.array([odds, 0.0], dtype=np.float32), (images, 1)), labels


def test_ece_of_equal_confidences_is_the_gap():
    logits, labels = logits_of(0.9, 60, 100)
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(0.3)


def test_ece_of_a_calibrated_network_is_zero():
    logits, labels = logits_of(0.75, 75, 100)
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(0, abs=1e-6)


def test_ece_bins_hold_equal_counts():
    """Two confidences, 5 and 10 bins full of them: the error is the weighted mean of the gaps."""
    sure, right = logits_of(0.99, 50, 50)
    unsure, wrong = logits_of(0.6, 0, 100)
    logits, labels = np.concatenate([sure, unsure]), np.concatenate([right, wrong])
    wanted = (50 * 0.01 + 100 * 0.6) / 150
    assert expected_calibration_error(logits, labels) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_temperature_is_what_scipy_finds(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = (rng.normal(size=(400, 5)) + 2 * np.eye(5)[labels]).astype(np.float32) * scale

    def loss(log_temperature):
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        return log_loss(labels, powers / powers.sum(1, keepdims=True), labels=range(5))

    wanted = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)
    assert fit_temperature(logits, labels) == pytest.approx(wanted, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=30
    )
)
def test_auroc_against_scikit_learn_with_ties(pairs):
    scores = np.array([score for score, _ in pairs], dtype=np.float32)
    right = np.array([each for _, each in pairs])
    found = gate_auroc(scores, right)
    if right.all() or not right.any():
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(right, scores))


def test_oracle_leaves_at_the_first_right_exit():
    table = table_of((0, 1), (1, 1, 2), (1, 1, 1), depth=3, first_macs=0, block_macs=10)
    right = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]], dtype=bool)
    said = np.where(right, table.labels[:, None], (table.labels[:, None] + 1) % 10)
    table.logits[:] = np.eye(10, dtype=np.float32)[said]
    found = oracle(table)
    assert found.acc1 == 75.0
    assert found.expected_macs == (10 + 20 + 30 + 30) / 4
    assert found.overthinking == 25.0  # the first image


def test_calibrate_reports_every_exit():
    found = calibrate(random_table(300, 3, 5, 0), random_table(200, 3, 5, 1))
    assert [each.position for each in found] == [0, 1, 2, 3]
    assert found[-1].auroc is None
    assert all(each.temperature > 1 for each in found)  # noise is always overconfident
    assert all(each.ece_after < each.ece_before for each in found)


def test_equal_confidences_count_the_same_in_any_order():
    """Saturated networks give the same confidence to most images."""
    logits, labels = logits_of(0.9, 50, 100)
    few, their = logits_of(0.6, 10, 20)
    logits, labels = np.concatenate([logits, few]), np.concatenate([labels, their])
    wanted = (100 * abs(0.5 - 0.9) + 20 * abs(0.5 - 0.6)) / 120
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(120)
        error = expected_calibration_error(logits[order], labels[order])
        assert error == pytest.approx(wanted, abs=1e-6)


def test_ece_against_plain_python():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(150, 4)) * 2
    labels = rng.integers(0, 4, 150)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = sorted(zip(shares.max(1), shares.argmax(1) == labels, strict=True))
    bins = [rows[i : i + 10] for i in range(0, 150, 10)]  # no two are equal
    wanted = sum(abs(sum(right - p for p, right in rows)) for rows in bins) / 150
    assert expected_calibration_error(logits, labels) == pytest.approx(wanted)


def test_the_temperature_of_two_classes_in_closed_form():
    """With one confidence throughout, T turns it into the accuracy: T = ln-odds / ln(a / (1-a))."""
    logits, labels = logits_of(0.95, 75, 100)
    wanted = np.log(0.95 / 0.05) / np.log(0.75 / 0.25)
    assert fit_temperature(logits, labels) == pytest.approx(wanted, rel=1e-3)


def test_gated_calibration_reads_each_image_where_it_leaves():
    table = random_table(200, 3, 5, 1)
    exits = calibrate(random_table(300, 3, 5, 0), table)
    for number, each in enumerate(exits):
        gated = calibrate_gated(table, np.full(200, number), exits)
        assert gated.ece_before == each.ece_before
        assert gated.ece_after == pytest.approx(each.ece_after, rel=1e-5)  # float32 before
    taken = decide(table, 0.6)
    gated = calibrate_gated(table, taken, exits)
    said = table.logits[np.arange(200), taken]
    cooled = said / np.array([each.temperature for each in exits])[taken][:, None]
    assert gated.ece_before == expected_calibration_error(said, table.labels)
    assert gated.ece_after == expected_calibration_error(cooled, table.labels)


def test_an_exit_that_gives_nan_has_no_figures():
    calibration, test = random_table(60, 3, 5, 0), random_table(60, 3, 5, 1)
    for table in (calibration, test):
        table.logits[:, 1] = np.nan
        table.scores[:, 1] = np.nan
    broken = calibrate(calibration, test)[1]
    assert (broken.temperature, broken.ece_before, broken.ece_after) == (None, None, None)
    assert (broken.auroc, broken.acc1) == (None, 0.0)
