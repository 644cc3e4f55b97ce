"""The meter: idle power, net energy, failing sensors; and traces, replayed and hostile."""

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import ToolchainError, UserInputError
from compress.runtime.power.jetson import find_jetson
from compress.runtime.power.meter import EnergyMeter
from compress.runtime.power.sampling import PowerSource, Recording, Sample
from compress.runtime.power.trace import TraceSource, read_trace, write_trace
from tests.runtime.power_trees import orin_nano


class FakeSource(PowerSource):
    """Power that a test sets; kind "power", rails a and b, a alone is the total."""

    name = "fake"
    rails = ("a", "b")
    total_of = ("a",)

    def __init__(self) -> None:
        self.power_mw = 1000.0
        self.reads = 0
        self.fail: BaseException | None = None
        self.delay_s = 0.0

    def read(self) -> dict[str, float]:
        self.reads += 1
        if self.fail is not None and threading.current_thread().name == "power":
            raise self.fail
        time.sleep(self.delay_s)
        return {"a": self.power_mw, "b": 7.0}


class Replayed(PowerSource):
    """Samples that a test lists, as phases in order."""

    name = "listed"

    def __init__(self, kind: str, *phases: list[tuple[float, dict[str, float]]]) -> None:
        self.kind = kind
        self.rails = tuple(phases[0][0][1])
        self.total_of = self.rails[:1]
        self._phases = [[Sample(*sample) for sample in phase] for phase in phases]

    def record(self, phase: str, rate_hz: float) -> Recording:
        samples = self._phases.pop(0)

        class Listed(Recording):
            def __init__(self) -> None:
                pass

            def wait(self, seconds: float) -> None:
                pass

            def stop(self) -> list[Sample]:
                return samples

        return Listed()


# The meter


def test_net_energy_is_energy_less_idle_power_times_the_time():
    source = Replayed(
        "power",
        [(0, {"in": 8000.0, "x": 1.0}), (10, {"in": 8000.0, "x": 1.0})],
        [(20, {"in": 13200.0, "x": 500.0}), (25, {"in": 13200.0, "x": 500.0})],
    )
    meter = EnergyMeter(source, state=lambda: {"power_mode": "MAXN"})
    assert meter.measure_idle() == 8.0
    reading = meter.measure(lambda: None)
    assert reading.energy_mj == 66000.0
    assert reading.net_energy_mj == 26000.0
    assert (reading.mean_power_w, reading.idle_power_w) == (13.2, 8.0)
    assert reading.net_power_w == pytest.approx(5.2)
    assert reading.rails == {"in": 13.2, "x": 0.5}
    assert (reading.total_of, reading.samples, reading.seconds) == (("in",), 2, 5.0)
    assert reading.state == {"power_mode": "MAXN"}
    assert json.loads(json.dumps(reading.to_dict()))["net_power_w"] == pytest.approx(5.2)
    assert "idle 8.00 W, net 5.20 W" in reading.to_text()
    assert "listed: in," in reading.to_text()


def test_without_idle_power_there_is_no_net_energy_and_it_is_said():
    source = Replayed("energy", [(0, {"p": 10.0}), (2, {"p": 4010.0})])
    reading = EnergyMeter(source, state=dict).measure(lambda: None)
    assert (reading.energy_mj, reading.mean_power_w) == (4000.0, 2.0)
    assert reading.net_energy_mj is None
    assert reading.net_power_w is None
    assert "no net energy" in reading.to_text()


def test_a_real_thread_sees_power_rise_while_the_work_runs():
    source = FakeSource()
    meter = EnergyMeter(source, rate_hz=500, state=dict)
    assert meter.measure_idle(0.05) == pytest.approx(1.0)

    def work() -> None:
        source.power_mw = 3000.0
        time.sleep(0.2)

    reading = meter.measure(work)
    assert reading.seconds >= 0.2
    assert reading.samples > 10
    assert reading.mean_power_w == pytest.approx(3.0, rel=0.1)
    assert reading.net_power_w == pytest.approx(2.0, rel=0.15)
    assert reading.rails["b"] == pytest.approx(0.007)
    assert not [t for t in threading.enumerate() if t.name == "power"]


def test_a_slow_sensor_is_read_as_fast_as_it_goes_and_never_in_haste():
    source = FakeSource()
    source.delay_s = 0.02
    meter = EnergyMeter(source, rate_hz=1000, state=dict)
    reading = meter.measure(lambda: time.sleep(0.2))
    assert 4 <= reading.samples <= 13


def test_a_fast_sensor_is_read_at_the_rate_that_is_asked_for():
    meter = EnergyMeter(FakeSource(), rate_hz=50, state=dict)
    reading = meter.measure(lambda: time.sleep(0.3))
    assert 4 <= reading.samples <= 2 + 50 * reading.seconds


def test_a_sensor_that_fails_most_of_the_time_gives_no_figure():
    source = FakeSource()
    meter = EnergyMeter(source, rate_hz=500, state=dict)
    meter.start()
    source.fail = OSError(11, "Resource temporarily unavailable")
    time.sleep(0.1)
    with pytest.raises(ToolchainError, match=r"fake failed at \d+ of \d+ readings"):
        meter.stop()


def test_a_broken_sensor_is_told_by_the_thread_of_the_caller():
    source = FakeSource()
    meter = EnergyMeter(source, rate_hz=500, state=dict)
    meter.start()
    source.fail = KeyError("rail")
    time.sleep(0.05)
    with pytest.raises(KeyError):
        meter.stop()


def test_a_sensor_that_cannot_be_read_at_all(tmp_path):
    orin_nano(tmp_path)
    source = find_jetson(tmp_path)
    (tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_input").unlink()
    with pytest.raises(ToolchainError, match=r"jetson-ina3221 cannot be read.*VDD_IN"):
        EnergyMeter(source).start()


def test_an_error_of_the_work_passes_and_the_meter_goes_on():
    source = FakeSource()
    meter = EnergyMeter(source, rate_hz=500, state=dict)
    with pytest.raises(ZeroDivisionError):
        meter.measure(lambda: 1 / 0)
    assert meter.measure(lambda: time.sleep(0.01)).energy_mj > 0


def test_misuse_of_the_meter():
    meter = EnergyMeter(FakeSource(), state=dict)
    with pytest.raises(UserInputError, match="no run is being measured"):
        meter.stop()
    with pytest.raises(UserInputError, match="more than 0"):
        meter.measure_idle(0)
    with pytest.raises(UserInputError, match="rate"):
        EnergyMeter(FakeSource(), rate_hz=0).start()
    meter.start()
    with pytest.raises(UserInputError, match="already"):
        meter.start()
    meter.stop()


# Traces


def test_a_replayed_trace_gives_the_same_energy_to_the_last_digit(tmp_path):
    meter = EnergyMeter(FakeSource(), rate_hz=500, state=lambda: {"board": "a"})
    meter.measure_idle(0.02)
    readings = [meter.measure(lambda: time.sleep(0.02)) for _ in range(2)]
    write_trace(meter.trace(), tmp_path / "trace.jsonl")
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace == meter.trace()
    again = EnergyMeter(TraceSource(trace))
    start = time.perf_counter()
    again.measure_idle(3600)  # takes no time
    assert [again.measure(lambda: None) for _ in range(2)] == readings
    assert time.perf_counter() - start < 10
    with pytest.raises(UserInputError, match="no further phase 'active'"):
        again.start()


HEAD = {
    "format": "compress.power_trace/1", "source": "meter", "kind": "power", "rails": ["in"],
    "total_of": ["in"],
}  # fmt: skip


def trace_file(path: Path, *lines: object) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_a_trace_that_was_recorded_elsewhere_needs_no_phases(tmp_path):
    lines = [{"t_s": t, "mw": {"in": 2000}} for t in (0, 1, 2)]
    source = TraceSource(read_trace(trace_file(tmp_path / "t", HEAD, *lines)))
    reading = EnergyMeter(source).measure(lambda: None)
    assert (reading.energy_mj, reading.source) == (4000.0, "meter")


GOOD = {"t_s": 0, "mw": {"in": 1}}
LATER = {"t_s": 1, "mw": {"in": 1}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1"),
        (["[]"], "in place of an object"),
        (["[" * 100_000], "line 1"),
        ([{**HEAD, "format": "x/9"}], "format 'x/9'"),
        ([{**HEAD, "kind": "heat"}], "kind"),
        ([{**HEAD, "rails": []}], "names of rails"),
        ([{**HEAD, "rails": ["in", "in"]}], "twice"),
        ([{**HEAD, "total_of": ["out"]}], "does not have"),
        ([{**HEAD, "state": []}], "another type"),
        ([HEAD], "no reading"),
        ([HEAD, GOOD], "1 readings"),
        ([HEAD, GOOD, {"phase": 3}], "line 3"),
        ([HEAD, GOOD, {"mw": {"in": 1}}], "'t_s' is missing"),
        ([HEAD, GOOD, {"t_s": 1, "mj": {"in": 1}}], "'mw' is missing"),
        ([HEAD, GOOD, {"t_s": 0, "mw": {"in": 1}}], "time goes"),
        ([HEAD, GOOD, {"t_s": 1, "mw": {"out": 1}}], "not those of the first line"),
        ([HEAD, GOOD, {"t_s": 1, "mw": {"in": "1"}}], "in place of a number"),
        ([HEAD, GOOD, {"t_s": 1, "mw": {"in": True}}], "in place of a number"),
        ([HEAD, GOOD, '{"t_s": 1, "mw": {"in": NaN}}'], "NaN is no number"),
        ([HEAD, GOOD, '{"t_s": 1, "mw": {"in": 1e999}}'], "out of range"),
        ([HEAD, GOOD, '{"t_s": 1, "mw": {"in": 1' + "0" * 400 + "}}"], "line 3"),
        (
            [
                {**HEAD, "kind": "energy"},
                {"t_s": 0, "mj": {"in": 2}},
                {"t_s": 1, "mj": {"in": 1}},
            ],
            "goes back",
        ),
        ([HEAD, GOOD, LATER, {"phase": "idle"}], "'idle' has 0 readings"),
    ],
)
def test_a_hostile_trace_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(UserInputError, match=message):
        read_trace(trace_file(tmp_path / "t", *lines))


def test_a_trace_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "t").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserInputError, match="cannot be used"):
        read_trace(tmp_path / "t")
    with pytest.raises(UserInputError, match="does not exist"):
        read_trace(tmp_path / "u")


@given(st.text(max_size=80))
def test_no_text_behind_a_good_start_ends_in_another_error(tmp_path_factory, text):
    path = trace_file(tmp_path_factory.getbasetemp() / "any", HEAD, GOOD, LATER)
    path.write_text(path.read_text() + text, encoding="utf-8", errors="replace")
    with contextlib.suppress(UserInputError):
        assert read_trace(path).rails == ("in",)
