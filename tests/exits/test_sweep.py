import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.exits.log_text import deployment_block, sweep_block
from compress.exits.replay import decide
from compress.exits.sweep import evaluate_at, parse_sweep, sweep
from tests.exits.tables import random_table, table_of

# The deployed networks of the published logs: positions, images and accuracy (%) per exit, the
# accuracy that the log prints, and the true multiply-adds (M) and their share of the whole network.
LOGS = {
    "RESISC45": {
        "positions": (4, 5, 7),
        "counts": (1392, 1995, 2266, 647),
        "accuracies": (99.78448275862068, 98.64661654135338, 96.954986760812, 79.44358578052551),
        "rates": (22.095238095238095, 31.666666666666664, 35.96825396825397, 10.269841269841269),
        "acc1": "96.317",
        "mmacs": (75.50, 304.18, 2240, 60.1),
    },
    "UC Merced": {
        "positions": (7, 8, 9),
        "counts": (139, 67, 153, 61),
        "accuracies": (100.0, 100.0, 98.0392156862745, 95.08196721311475),
        "rates": (33.095238095238095, 15.95238095238095, 36.42857142857142, 14.523809523809526),
        "acc1": "98.571",
        "mmacs": (75.50, 304.18, 2956, 79.3),
    },
    "CIFAR-10": {
        "positions": (7, 8, 9),
        "counts": (1944, 3580, 3178, 1298),
        "accuracies": (100.0, 99.72067039106145, 99.46507237256135, 90.13867488443759),
        "rates": (19.439999999999998, 35.8, 31.78, 12.98),
        "acc1": "98.450",
        "mmacs": (57.80, 232.82, 2273, 79.7),
    },
}


def logged(name: str):
    log = LOGS[name]
    pairs = zip(log["counts"], log["accuracies"], strict=True)
    correct = [round(count * accuracy / 100) for count, accuracy in pairs]
    stem, block, _, _ = log["mmacs"]
    return table_of(
        log["positions"], log["counts"], correct,
        first_macs=round(stem * 1e6), block_macs=round(block * 1e6),
    )  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_the_deployment_block_of_the_log(name):
    log, report = LOGS[name], evaluate_at(logged(name), 0.8)
    text = deployment_block(report)
    assert f"* Acc@1 {log['acc1']} Acc@5 " in text
    accuracies, counts, rates = (eval(line) for line in text.splitlines()[2:5])
    places = [*log["positions"], 11]
    assert [counts[place] for place in places] == list(log["counts"])
    assert sum(counts) == sum(log["counts"])
    assert [accuracies[place] for place in places] == pytest.approx(log["accuracies"], abs=1e-12)
    assert [rates[place] for place in places] == pytest.approx(log["rates"], abs=1e-12)
    assert len(counts) == len(rates) == len(accuracies) == 12


@pytest.mark.parametrize("name", LOGS)
def test_the_true_multiply_adds_of_the_log(name):
    _, _, mmacs, share = LOGS[name]["mmacs"]
    report = evaluate_at(logged(name), 0.8)
    assert report.expected_macs / 1e6 == pytest.approx(mmacs, abs=0.5)
    assert 100 * report.macs_share == pytest.approx(share, abs=0.05)


def test_the_sweep_block():
    lines = sweep_block(evaluate_at(logged("UC Merced"), 0.75)).splitlines()
    assert lines[0] == "****************0.75****************"
    assert lines[1] == "Exiting Layer0:[0.0/0]"
    assert lines[8].startswith("Exiting Layer7:[33.09523809523809")
    assert lines[8].endswith("/100.0]")
    assert lines[13].startswith("acc_val=98.57142857142857,total_GMACs=2.95")
    assert lines[14] == lines[0]
    assert lines[15].startswith("threshold:0.75-->expected_acc:98.57142857142857<=>expected_GMACs")
    assert lines[16:] == ["420", "414"]


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
    parts = [
        count * (accuracy or 0) / 100
        for count, accuracy in zip(report.counts, report.accuracies, strict=True)
    ]
    assert round(sum(parts)) == sum(report.correct)
    assert sum(parts) == pytest.approx(sum(report.correct), abs=1e-9)
    assert sum(report.rates) == pytest.approx(100)


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


def test_bad_thresholds_and_exits():
    table = random_table(4, 3, 5, 0)
    for bars in (1.1, -0.1, float("nan"), [0.5, 0.5]):
        with pytest.raises(UserInputError, match="threshold"):
            evaluate_at(table, bars)
    for positions in ([0, 0], [3], [-1]):
        with pytest.raises(UserInputError, match="--exits is"):
            evaluate_at(table, 0.5, positions=positions)
