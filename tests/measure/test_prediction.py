"""Predicted latency and energy: forward times of the published logs, closed forms, bad files."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.measure.prediction import expected_hits, predict
from compress.runtime.device_profile import (
    DeviceProfile,
    OperationTime,
    read_device_profile,
    shipped_profiles,
    write_device_profile,
)

# Images that leave behind each block, of the logs' deployments; forward time of the profile,
# average forward time per image and hits of the profile (of two passes), of the same runs.
LOGS = {
    "cifar10": ([1944, 3580, 3178, 1298], [7, 8, 9, 11], 21.80, 23.229, (190255, 45063, 20000)),
    "resisc45": ([1392, 1995, 2266, 647], [4, 5, 7, 11], 17.65, 19.053, (89640, 28240, 12600)),
    "ucm": ([139, 67, 153, 61], [7, 8, 9, 11], 22.26, 23.735, (7954, 1830, 840)),
}


def by_operation(**changes) -> DeviceProfile:
    operations = (
        OperationTime(name="patch embedding", per="image", ms=1.0),
        OperationTime(name="blocks", per="block", ms=2.0),
        OperationTime(name="gate", per="exit", ms=0.5),
        OperationTime(name="gate", per="exit", ms=0.25),
        OperationTime(name="leave", per="early", ms=0.1),
        OperationTime(name="final head", per="final", ms=0.4),
    )
    profile = DeviceProfile(
        name="made", device="a device", network="a network", source="by hand", operations=operations
    )
    return dataclasses.replace(profile, **changes)


@pytest.mark.parametrize("name", LOGS)
def test_the_logs_own_rates_and_times_give_its_forward_times(name):
    leaving, positions, forward_ms, average_ms, hits = LOGS[name]
    prediction = predict(read_device_profile(f"jetson_log_{name}"), leaving, positions=positions)
    assert prediction.forward_ms == pytest.approx(forward_ms, abs=0.05)
    assert prediction.latency_ms == pytest.approx(average_ms, abs=0.05)
    blocks, gates, passes = hits  # a few images took another exit in the second pass
    assert prediction.parts["blocks"][0] == pytest.approx(blocks / passes, rel=1e-3)
    assert prediction.parts["gate"][0] == pytest.approx(gates / passes, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "table_ms", "table_mj"),
    [("cifar10", 23.14, 108.75), ("resisc45", 19.15, 90.00), ("ucm", 23.83, 112.00)],
)
def test_the_logs_own_figures_come_near_its_table_of_energy(name, table_ms, table_mj):
    """The table is of another run: its latencies differ by up to half a per cent."""
    leaving, positions, *_ = LOGS[name]
    prediction = predict(read_device_profile(f"jetson_log_{name}"), leaving, positions=positions)
    assert prediction.latency_ms == pytest.approx(table_ms, rel=0.006)
    assert prediction.net_energy_mj == pytest.approx(table_mj, rel=0.006)


def test_what_is_shipped_can_be_read_and_names_itself():
    assert set(shipped_profiles()) == {f"jetson_log_{name}" for name in LOGS}
    for name in shipped_profiles():
        assert read_device_profile(name).name == name


def test_an_example_by_hand():
    prediction = predict(by_operation(outside_ms=0.5, net_power_w=4.0), [1, 1], positions=[3, 11])
    # 8 blocks, one exit checked by each image, half of them leave there
    assert prediction.forward_ms == pytest.approx(1 + 16 + 0.75 + 0.05 + 0.2)
    assert prediction.latency_ms == pytest.approx(18.5)
    assert prediction.net_energy_mj == pytest.approx(74.0)
    assert prediction.whole_ms == pytest.approx(1 + 24 + 0.4)
    assert prediction.parts["gate"] == (1.0, pytest.approx(0.75))
    text = prediction.to_text()
    assert "forward 18.00 ms, with what is besides it 18.50 ms (54.05 FPS)" in text
    assert "net energy 74.00 mJ" in text
    json.dumps(prediction.to_dict(), allow_nan=False)


def test_an_unknown_power_is_said_and_not_zero():
    prediction = predict(by_operation(), [1, 1], positions=[3, 11])
    assert prediction.net_energy_mj is None
    assert "energy: not predicted" in prediction.to_text()


def test_by_segments():
    profile = by_operation(operations=(), segments_ms=(4.0, 3.0, 2.0), net_power_w=2.0)
    prediction = predict(profile, [50, 30, 20])
    assert prediction.forward_ms == pytest.approx(4 + 0.5 * 3 + 0.2 * 2)
    assert prediction.net_energy_mj == pytest.approx(11.8)
    assert prediction.whole_ms is None
    assert prediction.parts["segment 2"] == (pytest.approx(0.2), pytest.approx(0.4))


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6), st.data())
def test_expected_hits_are_those_of_images_that_are_followed_one_by_one(counts, data):
    if not any(counts):
        counts[0] = 1
    positions = sorted(
        data.draw(
            st.sets(st.integers(0, 20), min_size=len(counts), max_size=len(counts)), label="blocks"
        )
    )
    seen = dict.fromkeys(("image", "block", "exit", "early", "final"), 0)
    for k, count in enumerate(counts):
        for _ in range(count):
            seen["image"] += 1
            for block in range(positions[-1] + 1):
                seen["block"] += 1
                if block in positions[:-1]:
                    seen["exit"] += 1
                    if positions.index(block) == k:
                        seen["early"] += 1
                        break
            else:
                seen["final"] += 1
    hits = expected_hits(counts, positions)
    assert hits == pytest.approx({name: n / sum(counts) for name, n in seen.items()})


def test_counts_rates_and_per_cent_mean_the_same():
    profile = by_operation()
    of_counts = predict(profile, [3, 1], positions=[3, 11]).forward_ms
    for leaving in ([0.75, 0.25], [75.0, 25.0]):
        assert predict(profile, leaving, positions=[3, 11]).forward_ms == pytest.approx(of_counts)


@pytest.mark.parametrize(
    ("leaving", "positions", "message"),
    [
        ([], [], "images that leave"),
        ([0, 0], [3, 11], "not all 0"),
        ([1, -1], [3, 11], "at least 0"),
        ([1, math.nan], [3, 11], "at least 0"),
        ([1, math.inf], [3, 11], "at least 0"),
        ([1, 1], None, "block of each exit"),
        ([1, 1], [11], "block of each exit"),
        ([1, 1], [11, 3], "ascending"),
        ([1, 1], [3, 3], "ascending"),
        ([1, 1], [-1, 3], "ascending"),
        ([1, 1], [1, 10**12], "ascending"),
    ],
)
def test_exits_that_do_not_fit(leaving, positions, message):
    with pytest.raises(UserInputError, match=message):
        predict(by_operation(), leaving, positions=positions)


def test_segments_that_do_not_fit():
    with pytest.raises(UserInputError, match="2 segments and 3 exits"):
        predict(by_operation(operations=(), segments_ms=(1.0, 1.0)), [1, 1, 1])


def test_a_profile_of_nothing_predicts_nothing():
    with pytest.raises(UserInputError, match="latency of 0"):
        predict(by_operation(operations=(), segments_ms=(0.0,)), [1])


# Files


@pytest.mark.parametrize(
    "profile",
    [by_operation(), by_operation(operations=(), segments_ms=(1.5, 2.0), net_power_w=3.0)],
)
def test_what_is_written_is_read(tmp_path, profile):
    write_device_profile(profile, tmp_path / "profile.json")
    assert read_device_profile(tmp_path / "profile.json") == profile


def test_what_cannot_be_read_is_not_written(tmp_path):
    for segments in ((), (math.nan,), (-1.0,)):
        profile = by_operation(operations=(), segments_ms=segments)
        with pytest.raises(UserInputError, match="cannot be written"):
            write_device_profile(profile, tmp_path / "profile.json")
    assert not (tmp_path / "profile.json").exists()


OPERATION = {"name": "blocks", "per": "block", "ms": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "compress.device_profile/9"}, "another format"),
        ({"operations": []}, "one of the two"),
        ({"segments_ms": [1.0]}, "one of the two"),
        ({"operations": {}}, "in place of a list"),
        ({"operations": [OPERATION] * 1001}, "at most 1000"),
        ({"operations": [3]}, "cannot be used"),
        ({"operations": [{**OPERATION, "per": "week"}]}, "not one of"),
        ({"operations": [{**OPERATION, "per": []}]}, "not one of"),
        ({"operations": [{"name": "blocks", "per": "block"}]}, "'ms' is missing"),
        ({"operations": [{**OPERATION, "ms": -1}]}, "in place of a number"),
        ({"operations": [{**OPERATION, "ms": "2"}]}, "in place of a number"),
        ({"operations": [{**OPERATION, "ms": True}]}, "in place of a number"),
        ({"operations": [{**OPERATION, "ms": math.nan}]}, "in place of a number"),
        ({"operations": [{**OPERATION, "ms": math.inf}]}, "in place of a number"),
        ({"operations": [{**OPERATION, "ms": 10**400}]}, "in place of a number"),
        ({"operations": [{**OPERATION, "name": 3}]}, "in place of text"),
        ({"outside_ms": None}, "in place of a number"),
        ({"net_power_w": -4.7}, "in place of a number"),
        ({"device": None}, "in place of text"),
    ],
)
def test_a_hostile_profile_is_refused(tmp_path, change, message):
    value = {**by_operation().to_dict(), **change}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserInputError, match=message) as caught:
        read_device_profile(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b" " * (1 << 20) + b"{}"]
)
def test_what_is_no_profile_is_refused(tmp_path, content):
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match="device profile"):
        read_device_profile(path)


def test_a_profile_that_is_not_there_names_those_that_are():
    with pytest.raises(UserInputError, match="jetson_log_cifar10"):
        read_device_profile("jetson_xavier")
