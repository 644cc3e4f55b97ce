"""Axes and drawings: round ticks that hold all values, marks where the values are."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report.charts import Bar, Series, bars, histogram, lines
from compress.report.facts import Front, Point
from compress.report.figures import front_figure
from compress.report.numbers import (
    bytes_text,
    change_text,
    count_text,
    ms_text,
    number_text,
    points_text,
)
from compress.report.scale import round_scale

VALUES = st.lists(st.floats(-1e18, 1e18), min_size=1, max_size=20)


def test_an_axis_by_hand():
    scale = round_scale([0.3, 9.2], 0, 100)
    assert (scale.low, scale.high, scale.step) == (0, 10, 2.5)
    assert [words for _, words in scale.ticks()] == ["0.0", "2.5", "5.0", "7.5", "10.0"]
    assert scale.at(5) == 50
    assert [words for _, words in round_scale([10, 99.5], 0, 1, most=100).ticks()][-1] == "100"


def test_epochs_are_whole():
    ticks = round_scale([1, 2], 0, 1, count=5, least_step=1).ticks()
    assert [words for _, words in ticks] == ["1", "2"]


def test_a_mark_does_not_stand_on_the_axis():
    assert round_scale([99.1, 99.3], 0, 1, room=True).low < 99.1 - 1e-9


@given(VALUES, st.booleans())
def test_every_value_is_inside_and_ticks_ascend(values, room):
    scale = round_scale(values, 10, 110, room=room)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low - slack <= min(values)
    assert scale.high + slack >= max(values)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    ticks = [value for value, _ in scale.ticks()]
    assert ticks == sorted(ticks)
    assert len(ticks) <= 12
    assert all(10 <= scale.at(value) <= 110 for value in ticks)


@given(st.lists(st.tuples(st.floats(-1e18, 1e18), st.floats(-1e18, 1e18)), min_size=1, max_size=9))
def test_a_line_carries_its_points_unrounded(points):
    text = lines([Series(name="a", slot=0, points=tuple(points))], "t", x_words="x", y_words="y")
    marked = next(e for e in ElementTree.fromstring(text).iter() if "data-x" in e.attrib)
    xs, ys = (list(map(float, marked.get(f"data-{axis}").split(","))) for axis in "xy")
    assert list(zip(xs, ys, strict=True)) == points


def test_a_higher_value_is_drawn_higher():
    series = Series(name="a", slot=0, points=((0.0, 1.0), (1.0, 3.0)))
    root = ElementTree.fromstring(lines([series], "t", x_words="x", y_words="y"))
    places = root.find(".//polyline").get("points").split()
    (x0, y0), (x1, y1) = (map(float, place.split(",")) for place in places)
    assert x0 < x1
    assert y0 > y1


def test_a_logarithmic_histogram_has_bars_of_one_width():
    root = ElementTree.fromstring(
        histogram([1e-4, 1e-3, 1e-2, 1e-1], [1, 2, 4], "t", x_words="γ", line=1e-2)
    )
    widths = {rect.get("width") for rect in root.iter("rect")}
    assert len(widths) == 1
    line = next(e for e in root.iter("line") if "data-threshold" in e.attrib)
    last = list(root.iter("rect"))[-1]
    assert float(line.get("x1")) == pytest.approx(float(last.get("x")), abs=0.02)


def test_names_that_are_too_long_keep_their_end_and_are_told_whole():
    name = "stages.3.blocks.12.mlp.fc1"
    root = ElementTree.fromstring(bars([Bar(name=name, value=0.0, words="0")], "t"))
    label = root.find("text")
    assert label.text == "stage…2.mlp.fc1"[:5] + "…" + name[-8:]
    assert label.find("title").text == name


def test_bars_of_nothing_are_empty():
    root = ElementTree.fromstring(bars([Bar(name="a", value=0.0, words="0")], "t"))
    assert float(root.find("rect").get("width")) == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (count_text(8_369_408), "8.37 M"),
        (count_text(999_900), "1.00 M"),
        (count_text(432), "432"),
        (count_text(63.51), "63.5"),
        (bytes_text(551_730), "552 kB"),
        (bytes_text(12), "12 B"),
        (ms_text(0.20912), "0.209 ms"),
        (ms_text(0.00041), "0.000410 ms"),
        (ms_text(9.999), "10.0 ms"),
        (ms_text(1234.5), "1234 ms"),
        (number_text(2.984e-7), "2.98·10⁻⁷"),
        (number_text(0.25), "0.25"),
        (number_text(0.0), "0"),
        (change_text(20, 100), "−80.0%"),
        (change_text(100.01, 100), "±0.0%"),
        (change_text(150, 100), "+50.0%"),
        (change_text(1, 0), ""),
        (points_text(-0.222), "−0.22 pt"),
        (points_text(-0.001), "±0.00 pt"),
    ],
)
def test_numbers_are_written_for_people(text, wanted):
    assert text.replace("\u00a0", " ") == wanted


@given(st.floats(-1e18, 1e18))
def test_rounded_numbers_are_near(value):
    plain = number_text(value).replace("\u2212", "-")
    digits, _, power = plain.partition("·10")
    power = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    read = float(digits) * 10.0 ** int(power or 0) if abs(value) > 1e-300 else value
    assert math.isclose(read, value, rel_tol=6e-3, abs_tol=1e-300)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_front_says_where_its_chosen_point_was_counted(held_out):
    point = Point(cost_share=0.5, acc1=96.0)
    front = Front(network="dynn", series=(("search", (point,)),), chosen=point, held_out=held_out)
    figure = front_figure(front)
    assert ("counted on other images" in figure.note) is held_out
