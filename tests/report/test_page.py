"""The page holds what the JSON holds: every table and every drawing, looked up in small_run."""

import json
import re

import pytest

from compress.report.collect import collect
from compress.report.page import render_html
from tests.report.parsed import Page
from tests.report.small_run import (
    CURVE,
    EVALUATED_BY_PATH,
    EXIT_ROWS,
    HISTOGRAM,
    LAYERS,
    PATHS,
    PICTURE,
    REFUSED,
    SLIM_ROWS,
    done,
    write_run,
)

REQUEST = re.compile(r"https?:|//[a-z]|@import|url\(", re.IGNORECASE)
ASKING = {"script", "link", "iframe", "object", "embed", "form", "base", "audio", "video", "use"}


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return render_html([collect(write_run(tmp_path_factory.mktemp("run")))])


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def tables_called(html, caption):
    """Return all tables with a caption, as `Page` keeps only the last."""
    parts = re.split(r'<div class="table"', html)[1:]
    pages = [Page(f'<div class="table"{part.partition("</div>")[0]}</div>') for part in parts]
    return [page for page in pages if caption in page.tables]


def test_the_comparison_holds_every_network_and_its_saving(html):
    thin, early = tables_called(html, "Final comparison")
    assert thin.tables["Final comparison"] == [
        ["Network", "Channels removed", "Parameters", "MACs", "Slimmed only", "Accuracy",
         "torch latency"],
        ["baseline", "–", "200 k", "8.00 M", "–", "95.00%", "1.00 ms"],
        ["slim 0.5", "45.0%", "40.0 k −80.0%", "2.00 M −75.0%", "60.25%",
         "94.50% −0.50 pt", "0.400 ms −60.0%"],
    ]  # fmt: skip
    row = SLIM_ROWS[1]
    assert thin.values["Final comparison"][2] == [
        None, 0.45, row["params"], row["macs"], 60.25, row["acc1_finetuned"], 0.4,
    ]  # fmt: skip
    # An image that may leave early costs what it costs on average.
    assert early.values["Final comparison"][2][1:3] == [110_000, EXIT_ROWS[1]["expected_macs"]]
    assert early.tables["Final comparison"][0][-2:] == ["torch latency", "Bundle latency"]
    assert early.tables["Final comparison"][2][-1] == "0.800 ms"


def test_a_welcome_change_looks_different_from_an_unwelcome_one(html):
    assert '<small class="better">−80.0%</small>' in html
    assert '<small class="worse">−0.50\u00a0pt</small>' in html


def test_bars_are_the_widths_of_the_layers(page):
    marks = page.marks("Widths of slim 0.5")
    assert [(m["name"], float(m["value"]), float(m["of"])) for m in marks] == [
        (layer["name"], layer["after"], layer["before"]) for layer in LAYERS
    ]
    drawn = [a for tag, a in page.figures["Widths of slim 0.5"] if tag == "rect"]
    pale, bar = drawn[2:]  # of the second layer
    assert float(bar["width"]) == pytest.approx(float(pale["width"]) * 8 / 32, rel=0.01)


def test_the_histogram_is_that_of_gamma_with_its_threshold(page):
    *gaps, threshold = page.marks("|γ| of slim 0.5")
    assert [int(gap["value"]) for gap in gaps] == HISTOGRAM["counts"]
    assert [float(gap["low"]) for gap in gaps] == HISTOGRAM["edges"][:-1]
    assert [float(gap["high"]) for gap in gaps] == HISTOGRAM["edges"][1:]
    assert float(threshold["threshold"]) == 0.02
    heights = [float(a["height"]) for tag, a in page.figures["|γ| of slim 0.5"] if tag == "rect"]
    assert heights[0] == pytest.approx(5 * heights[1], rel=0.01)


def test_curves_are_the_lines_of_the_metrics(page):
    for title, key in (
        ("Validation accuracy", "acc1"),
        ("Validation loss", "validation_loss"),
        ("Training loss", "train_loss"),
    ):
        points = [(line["epoch"], line[key]) for line in CURVE]
        assert page.series(title)["dynn"] == points  # the last chain's


def test_exits_show_rates_and_accuracies(page):
    marks = page.marks("Where images leave: dynn")
    assert [(m["name"], float(m["value"])) for m in marks] == [
        ("block 1", 50.0), ("block 3", 37.5), ("final head", 12.5),
    ]  # fmt: skip
    assert page.tables["Exits of dynn"][1:] == [
        ["block 1", "200", "50.00%", "99.50%", "0.875", "0.125", "0.062"],
        ["block 3", "150", "37.50%", "98.00%", "0.750", "0.250", "0.031"],
        ["final head", "50", "12.50%", "82.00%", "–", "–", "–"],
    ]


def test_exits_behind_modules_are_named_by_their_paths(tmp_path):
    own = {"early/evaluate/dynn/done.json": done(EVALUATED_BY_PATH),
           "early/plan/dynn/plan.json": json.dumps(REFUSED)}  # fmt: skip
    html = render_html([collect(write_run(tmp_path, **own))])
    page = Page(html)
    assert [m["name"] for m in page.marks("Where images leave: dynn")] == [*PATHS, "final head"]
    assert page.tables["Exits of dynn"][1:] == [
        ["layer1.8.relu", "200", "50.00%", "99.50%", "0.875", "0.125", "0.062"],
        ["features.14.block.conv2", "150", "37.50%", "98.00%", "0.625", "0.125", "0.062"],
        ["final head", "50", "12.50%", "82.00%", "–", "–", "–"],
    ]
    assert ">featu…ck.conv2<" in html  # in the drawing, where only its ends fit
    assert page.tables["Plans"][1][1] == (
        "none: with layer1.8.relu, features.14.block.conv2 an image costs 125.00% of the whole "
        "network"
    )


def test_accuracy_against_cost_marks_the_chosen_point(html):
    sweep, front = (Page(part) for part in re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
                    if "Accuracy against cost: dynn" in part)  # fmt: skip
    assert sweep.series("Accuracy against cost: dynn") == {
        "one threshold for all exits": [(37.5, 95.25), (50.0, 96.75)],
        "chosen: threshold 0.7": [(50.0, 96.75)],
        "oracle": [(25.0, 99.0)],  # 1.5 of 6 million
    }
    assert front.series("Accuracy against cost: dynn") == {
        "search": [(25.0, 94.0)],
        "uniform": [(75.0, 96.5)],
        "chosen": [(50.0, 96.75)],
    }


def test_plans_parity_dispatch_and_profile_are_tables(html, page):
    assert page.tables["Plans"][1] == [
        "dynn", "1, 3", "0.7, 0.8", "max-drop 0.5", "50.00%", "96.75%", "94.50% to 98.30%",
    ]  # fmt: skip
    assert page.tables["Parity of exports with torch"][1] == [
        "dynn", "bundle", "18", "3", "1.50 MB", "2.50·10⁻⁷", "1.50·10⁻⁶", "100.00%", "96.88%", "32",
    ]  # fmt: skip
    assert page.tables["Dispatch agreement"][1] == [
        "dynn", "400", "399", "99.75%", "96.50%", "201 · 149 · 50",
    ]  # fmt: skip
    assert page.values["Operations of dynn"][1:] == [
        [None, 800, 300.0, 0.375, 0.75], [None, 600, 100.0, 1 / 6, 0.25],
    ]  # fmt: skip
    assert [float(m["value"]) for m in page.marks("Time in operations: dynn")] == [75.0, 25.0]


def test_hardware_and_versions_are_told(page):
    assert ["cpu", "Abacus 9"] in page.tables["All steps"]
    assert ["torch", "2.13.0+cpu"] in page.tables["All steps"]


def test_the_summary_is_built_from_the_figures(page):
    summary = page.text.partition("All steps")[0]
    assert (
        "In the chain thin, slim 0.5 is right for 94.50% of the test images (the baseline for "
        "95.00%) with 25% of its MACs and 20% of its parameters. With torch an image takes 0.400 "
        "ms, where the baseline takes 1.00 ms." in summary
    )
    assert "87.5% leave dynn before its final head: an image costs 50% of the whole" in summary
    assert "399 of 400 images got the class and the exit of torch" in summary
    assert "Energy was not measured: this machine has no power rail." in summary


def test_the_page_asks_for_nothing(html, page):
    assert not REQUEST.search(html)
    assert not {tag for tag, _ in page.tags} & ASKING
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    addresses = [a.get("src") or a.get("href") for _, a in page.tags if "src" in a or "href" in a]
    assert addresses
    assert all(each.startswith(("#part-", "data:image/svg+xml;base64,")) for each in addresses)


def test_every_link_has_its_place(page):
    places = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 3  # two chains, and versions
    assert all(link.removeprefix("#") in places for link in links)


def test_what_comes_from_files_is_escaped_everywhere(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&"
    rows = [{**SLIM_ROWS[0], "network": evil}, {**SLIM_ROWS[1], "network": f"{evil} 2"}]
    changed = {
        "recipe.json": {"name": evil, "data": evil},
        "thin/compare/table.json": {"rows": rows, "versions": {evil: evil}},
        "thin/slim/0.5/slim.report.json": {"layers": [{**LAYERS[0], "name": evil}]},
    }
    texts = {name: json.dumps(value) for name, value in changed.items()}
    profile = {"profiles": {evil: {"rows": [{"name": evil, "share": 0.5}]}},
               "energy": {"reason": evil}}  # fmt: skip
    texts["early/benchmark/done.json"] = done(profile)
    page = Page(render_html([collect(write_run(tmp_path, **texts))]))
    assert not [tag for tag, a in page.tags if tag == "img" or "onerror" in a]
    assert page.text.count(evil) > 8
    assert page.marks("Widths of slim 0.5")[0]["name"] == evil


def test_a_histogram_that_is_a_picture_stays_a_picture(tmp_path):
    slimmed = done({"threshold": 0.02, "gamma": {"share_below_1pct": 0.625}})
    names = {"thin/slim/0.5/done.json": slimmed, "thin/slim/0.5/gamma.svg": PICTURE}
    html = render_html([collect(write_run(tmp_path, **names))])
    ((_, attributes),) = [each for each in Page(html).tags if each[0] == "img"]
    assert attributes["src"].startswith("data:image/svg+xml;base64,")
    assert "alert" not in html


def test_what_no_step_wrote_is_left_out(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "done.json").write_text(done({"test": {"acc1": 95.0}}))
    page = Page(render_html([collect(tmp_path)]))
    assert (page.tables, page.figures) == ({}, {})
    assert tmp_path.name in page.text


def test_several_runs_stand_side_by_side(tmp_path):
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", **{"early/compare/table.json": None})
    html = render_html([collect(first), collect(second)])
    (table,) = tables_called(html, "Runs side by side")
    rows = table.tables["Runs side by side"]
    assert [row[0] for row in rows[1:]] == [
        "thin: baseline a", "thin: baseline b", "thin: slim 0.5 a", "thin: slim 0.5 b",
        "early: baseline a", "early: dynn a", "early: dynn b",
    ]  # fmt: skip
    assert rows[3][2] == "40.0 k"
    assert rows[4][2] == "40.0 k ±0.0%"  # as in the first run
    assert "b / early" in Page(html).text


def test_the_same_facts_give_the_same_page(tmp_path, html):
    assert render_html([collect(write_run(tmp_path / "again"))]) == html
