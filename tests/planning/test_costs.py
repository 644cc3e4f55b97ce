import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.exits.replay import decide
from compress.exits.sweep import evaluate_at
from compress.measure.prediction import predict
from compress.planning.costs import (
    ExitCosts,
    costs_from_file,
    costs_from_profile,
    costs_from_table,
    expected_cost,
    read_costs,
)
from compress.runtime.device_profile import (
    DeviceProfile,
    read_device_profile,
    write_device_profile,
)
from tests.exits.tables import random_table


def costs_of(segments, checks, unit="ms"):
    return ExitCosts(
        segments=np.array(segments, dtype=float),
        checks=np.array(checks, dtype=float),
        unit=unit,
        source="made up",
    )


def test_the_example_of_the_module():
    costs = costs_of([10, 10, 20], [1, 2])
    assert costs.full == 40
    assert costs.exits == 2
    assert costs.per_exit(np.array([0, 1])).tolist() == [11, 23, 43]
    assert costs.per_exit(np.array([1])).tolist()[1:] == [22, 42]
    assert costs.per_exit(np.array([], dtype=int))[-1] == 40
    taken = np.array([0, 0, 1, 2])
    assert expected_cost(costs, taken, np.array([0, 1])) == (11 + 11 + 23 + 43) / 4


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), data=st.data())
def test_costs_of_a_table_are_its_multiply_adds(seed, data):
    table = random_table(30, 4, 3, seed)
    exits = np.array(sorted(data.draw(st.sets(st.integers(0, 3), min_size=1))))
    bar = data.draw(st.floats(0, 1))
    costs = costs_from_table(table)
    taken = decide(table, bar, exits=exits)
    report = evaluate_at(table, bar, positions=[table.positions[e] for e in exits])
    assert expected_cost(costs, taken, exits) == pytest.approx(report.expected_macs, rel=1e-14)
    assert costs.full == report.full_macs
    assert costs.unit == "macs"


def test_a_table_whose_checks_cost_more_than_their_segments_is_refused():
    table = random_table(5, 2, 3, 0)
    broken = replace(table, macs=np.array([10, 11, 12]), check_macs=np.array([1, 5]))
    with pytest.raises(UserInputError, match="segments cost"):
        costs_from_table(broken)


@pytest.mark.parametrize(
    ("segments", "checks", "unit", "match"),
    [([1, 2], [0, 0], "ms", "one segment more"), ([1], [0], "ms", "one segment more"),
     ([1, 0], [0], "ms", "above 0"), ([1, np.nan], [0], "ms", "above 0"),
     ([1, np.inf], [0], "ms", "above 0"), ([1, 2], [-1], "ms", "at least 0"),
     ([1, 2], [np.nan], "ms", "at least 0"), ([1, 2], [0], "flops", "unit")],
)  # fmt: skip
def test_costs_that_cannot_be(segments, checks, unit, match):
    with pytest.raises(UserInputError, match=match):
        costs_of(segments, checks, unit)


GOOD = {
    "format": "compress.costs/1", "unit": "mj", "source": "a board", "exits": [0, 1],
    "segments": [1.5, 2, 3], "checks": [0.25, 0],
}  # fmt: skip


def written(tmp_path, **changes):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def test_measured_costs_are_read(tmp_path):
    costs = costs_from_file(written(tmp_path), random_table(5, 2, 3, 0))
    assert costs.segments.tolist() == [1.5, 2, 3]
    assert costs.checks.tolist() == [0.25, 0]
    assert (costs.unit, costs.source, costs.full) == ("mj", "a board", 6.5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"exits": [0, 2]}, "behind 0,2, this one has them behind 0,1"),
     ({"exits": [0]}, "exits behind"), ({"format": "x"}, "format"), ({"unit": "s"}, "one of"),
     ({"segments": [1, 2]}, "segment"), ({"segments": [1, "2", 3]}, "number"),
     ({"segments": [1, True, 3]}, "number"), ({"checks": [float("nan"), 0]}, "number"),
     ({"checks": None}, "list"), ({"checks": [10**400, 0]}, "too large"),
     ({"source": 3}, "text")],
)  # fmt: skip
def test_files_of_costs_that_do_not_fit(changes, match, tmp_path):
    with pytest.raises(UserInputError, match=match):
        costs_from_file(written(tmp_path, **changes), random_table(5, 2, 3, 0))


def test_exits_behind_modules_and_a_whole_network_measured_beside(tmp_path):
    table = replace(random_table(5, 2, 3, 0), positions=("layer1", 1), depth=0)
    path = written(tmp_path, exits=["layer1", "blocks.1"], whole=5.0)
    costs = costs_from_file(path, table)
    assert costs.full == 5.0
    everyone = np.full(4, 2)
    # Without exits it runs in one piece; with one, in segments.
    assert expected_cost(costs, everyone, np.array([], dtype=int)) == 5.0
    assert expected_cost(costs, everyone, np.array([0])) == 6.75
    for bad in (0, -1.0, float("inf"), "5", True):
        with pytest.raises(UserInputError, match=r"costs\.json cannot be used"):
            costs_from_file(written(tmp_path, exits=["layer1", 1], whole=bad), table)


def test_a_profile_by_segments_with_its_checks_costs_what_its_prediction_says(tmp_path):
    table = replace(random_table(50, 2, 3, 0), positions=("layer1", "layer2"), depth=0)
    profile = DeviceProfile(
        name="mine", device="d", network="n", source="s", segments_ms=(1.0, 2.0, 4.0),
        checks_ms=(0.25, 0.5), exits=("layer1", "layer2"), whole_ms=6.0, outside_ms=0.125,
    )  # fmt: skip
    write_device_profile(profile, tmp_path / "profile.json")
    assert read_device_profile(tmp_path / "profile.json") == profile
    costs = read_costs(tmp_path / "profile.json", table)
    taken = np.random.default_rng(0).integers(0, 3, size=50)
    wanted = predict(profile, np.bincount(taken, minlength=3).tolist()).latency_ms
    assert expected_cost(costs, taken, np.arange(2)) == pytest.approx(wanted, rel=1e-12)
    assert costs.full == 6.125
    # With the second exit alone nobody pays the check of the first.
    assert costs.per_exit(np.array([1])).tolist() == [0.875, 2.875, 6.875]
    other = replace(table, positions=("layer1", "layer3"))
    with pytest.raises(UserInputError, match="exits behind layer1,layer2, this one has them"):
        read_costs(tmp_path / "profile.json", other)


def test_a_profile_by_blocks_is_not_of_a_network_without_them():
    table = replace(random_table(5, 2, 3, 0), positions=("layer1", "layer2"), depth=0)
    with pytest.raises(UserInputError, match="by blocks, and the exits stand behind layer1,layer2"):
        read_costs(Path("jetson_log_resisc45"), table)


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", "[" * 100_000, " " * (2 << 20)])
def test_files_that_are_no_costs(content, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(content)
    with pytest.raises(UserInputError, match=r"costs\.json"):
        costs_from_file(path, random_table(5, 2, 3, 0))


def test_a_device_profile_costs_what_its_prediction_says():
    """The log's Jetson: any decisions cost in sum what `predict` finds by another way."""
    table = replace(random_table(50, 3, 3, 0), positions=(3, 4, 6), depth=12)
    profile = read_device_profile("jetson_log_resisc45")
    costs = costs_from_profile(profile, table)
    taken = np.random.default_rng(0).integers(0, 4, size=50)
    counts = np.bincount(taken, minlength=4)
    wanted = predict(profile, counts.tolist(), positions=(3, 4, 6, 11)).latency_ms
    assert expected_cost(costs, taken, np.arange(3)) == pytest.approx(wanted, rel=1e-9)
    assert read_costs(Path("jetson_log_resisc45"), table).unit == "ms"


def test_a_profile_by_segments_does_not_tell_checks_apart(tmp_path):
    profile = DeviceProfile(
        name="mine", device="d", network="n", source="s", segments_ms=(1.0, 2.0)
    )
    write_device_profile(profile, tmp_path / "profile.json")
    with pytest.raises(UserInputError, match="does not tell what exit checks take"):
        read_costs(tmp_path / "profile.json", random_table(5, 1, 3, 0))
