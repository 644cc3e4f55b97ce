"""Energy from readings in closed form, and the table of the published logs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.runtime.power.energy import (
    energy_cell,
    energy_per_image_mj,
    energy_saving_percent,
    rail_energy_mj,
)
from compress.runtime.power.sampling import Sample


def test_trapezoids_over_the_times_that_were_measured():
    samples = [Sample(t, {"a": p}) for t, p in ((0, 1000), (0.5, 1000), (1, 3000))]
    assert rail_energy_mj(samples, "power") == {"a": 1500.0}


def test_a_counter_is_subtracted():
    samples = [Sample(t, {"a": e}) for t, e in ((5, 100.0), (6, 900.0), (7, 1100.0))]
    assert rail_energy_mj(samples, "energy") == {"a": 1000.0}


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=30),
    st.floats(-5, 5),
    st.floats(0, 100),
)
def test_power_that_grows_evenly_is_integrated_exactly_at_any_times(steps, slope, start):
    times = [math.fsum(steps[:i]) for i in range(len(steps) + 1)]
    samples = [Sample(t, {"a": start + slope * t}) for t in times]
    expected = start * times[-1] + slope * times[-1] ** 2 / 2
    assert rail_energy_mj(samples, "power")["a"] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("times", [[], [1.0], [1.0, 1.0]])
def test_no_time_has_no_energy(times):
    with pytest.raises(UserInputError, match="measure for longer"):
        rail_energy_mj([Sample(t, {"a": 1.0}) for t in times], "power")


# Energy per image, as the logs have it

# Net power as it follows from each row; the latency to one digit more than the table prints, inside
# what it rounds to.
LOG_TABLE = [
    ("GFNet-12-384(Baseline)", 5.2, 26.31, 26.310, "136.81mJ/0%"),
    ("GFNet-distil-12-192", 3.6, 16.44, 16.440, "59.18mJ/56.7%"),
    ("GFNet-dynn-12-384", 4.7, 23.14, 23.138, "108.75mJ/20.5%"),
    ("GFNet-dynn-12-192", 3.0, 15.97, 15.973, "47.92mJ/65.0%"),
    ("GFNet-12-384(Baseline)", 5.2, 26.75, 26.7495, "139.10mJ/0%"),
    ("GFNet-distil-12-192", 3.5, 16.75, 16.7499, "58.62mJ/57.85%"),
    ("GFNet-dynn-12-384", 4.7, 19.15, 19.1498, "90.00mJ/35.29%"),
    ("GFNet-dynn-12-192", 3.5, 14.09, 14.0899, "49.31mJ/64.55%"),
    ("GFNet-12-384(Baseline)", 5.3, 25.88, 25.8805, "137.17mJ/0%"),
    ("GFNet-distil-12-192", 3.5, 15.08, 15.0842, "52.79mJ/61.51%"),
    ("GFNet-dynn-12-384", 4.7, 23.83, 23.830, "112.00mJ/18.35%"),
    ("GFNet-dynn-12-192", 3.0, 14.12, 14.123, "42.37mJ/69.11%"),
]


def test_energy_per_image_and_saving_print_the_table_of_the_log():
    baseline_mj = None
    for name, net_w, printed_ms, latency_ms, cell in LOG_TABLE:
        assert f"{latency_ms:.2f}" == f"{printed_ms:.2f}", name
        energy_mj = energy_per_image_mj(8.0 + net_w, latency_ms, idle_power_w=8.0)
        if "Baseline" in name:
            baseline_mj = None
        digits = len(cell.rstrip("%").partition(".")[2].partition(".")[2])
        assert energy_cell(energy_mj, baseline_mj, digits=digits) == cell, name
        baseline_mj = energy_mj if baseline_mj is None else baseline_mj


def test_more_than_the_baseline_is_a_saving_below_zero():
    assert energy_saving_percent(150, 100) == -50
    assert energy_cell(150, 100) == "150.00mJ/-50.00%"


@pytest.mark.parametrize("values", [(math.nan, 1, 0), (1, 0, 0), (1, -1, 0), (1, math.inf, 0)])
def test_energy_of_no_measurement_is_refused(values):
    with pytest.raises(UserInputError, match="expected numbers"):
        energy_per_image_mj(values[0], values[1], idle_power_w=values[2])


@pytest.mark.parametrize("baseline_mj", [0, -1, math.nan])
def test_a_baseline_of_no_energy_is_refused(baseline_mj):
    with pytest.raises(UserInputError, match="baseline"):
        energy_saving_percent(1, baseline_mj)
