"""Reading a run folder: places, order, and files that are damaged or mean harm."""

import json
import shutil

import pytest

from compress.errors import UserInputError
from compress.report.collect import collect
from compress.report.facts import Latency
from compress.report.page import render_html
from tests.report.parsed import Page
from tests.report.small_run import FILES, SLIM_ROWS, done, latency, write_run


def test_chains_and_networks_stand_in_the_order_of_the_recipe(tmp_path):
    run = collect(write_run(tmp_path))
    assert [chain.name for chain in run.chains] == ["thin", "early"]
    assert [curve.name for curve in run.chains[0].curves] == ["baseline", "slim 0.5"]
    assert (run.name, run.notes) == ("small", ())


def test_the_networks_of_a_chain_are_sorted_as_a_person_would(tmp_path):
    for folder in ("0.05", "0.4", "0.1", "baseline", "distilled-dynn", "dynn", "distilled"):
        task = tmp_path / "export" / folder
        task.mkdir(parents=True)
        (task / "done.json").write_text(done({"onnx": "m.onnx", "parity": {"images": 1}}))
    (chain,) = collect(tmp_path).chains
    assert chain.name == ""
    assert [parity.network for parity in chain.parities] == [
        "baseline", "distilled", "slim 0.05", "slim 0.1", "slim 0.4", "dynn", "distilled dynn",
    ]  # fmt: skip


def test_a_chain_called_as_a_step_is_a_chain_where_the_recipe_says_so(tmp_path):
    write_run(tmp_path)
    shutil.move(tmp_path / "thin", tmp_path / "train")
    recipe = {**FILES["recipe.json"], "chains": {"train": []}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert collect(tmp_path).chains[0].name == "train"


def test_without_a_recipe_the_folder_gives_the_name(tmp_path):
    run = collect(write_run(tmp_path / "mine", **{"recipe.json": None}))
    assert run.name == "mine"
    assert [chain.name for chain in run.chains] == ["early", "thin"]


def test_a_benchmark_adds_what_the_table_did_not_time(tmp_path):
    benchmark = done(
        {
            "latency": {
                "dynn": {"torch": latency(9.0), "bundle": latency(0.8)},
                "new/torch": latency(5.0),
                "old/0.4": latency(7.0),
            },
            "energy": {"dynn": {"per_image_mj": 12.5}, "baseline": 20.0},
        }
    )
    run = collect(write_run(tmp_path, **{"early/benchmark/done.json": benchmark}))
    networks = {each.name: each for each in run.chains[1].networks}
    assert networks["dynn"].latency_ms("torch") == 1.2  # the table's own
    assert networks["dynn"].latency_ms("bundle") == 0.8
    assert networks["new"].latencies == (
        Latency(runtime="torch", median_ms=5.0, p10_ms=2.5, p90_ms=10.0, p99_ms=15.0),
    )
    assert [networks[name].energy_mj for name in ("dynn", "baseline", "new")] == [12.5, 20.0, None]
    assert networks["old/0.4"].latency_ms("benchmark") == 7.0
    page = Page(render_html([run]))
    assert page.tables["Final comparison"][2][-1] == "12.5 mJ −37.5%"


def test_why_there_is_no_energy_is_told(tmp_path):
    benchmark = done({"energy": None, "energy_reason": "no sensor"})
    run = collect(write_run(tmp_path, **{"early/benchmark/done.json": benchmark}))
    assert "Energy was not measured: no sensor." in Page(render_html([run])).text


def test_different_machines_are_told_apart(tmp_path):
    table = {"rows": SLIM_ROWS, "hardware": {"cpu": "Other"}}
    run = collect(write_run(tmp_path, **{"thin/compare/table.json": json.dumps(table)}))
    assert [dict(each.values)["cpu"] for each in run.environments] == ["Abacus 9", "Other"]
    assert run.environments[1].steps == ("thin/compare",)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000, '"text"', "1" * 5000])
@pytest.mark.parametrize(
    "name", ["thin/compare/table.json", "early/plan/dynn/plan.json", "recipe.json"]
)
def test_a_damaged_file_costs_one_sentence_and_not_the_page(tmp_path, name, text):
    run = collect(write_run(tmp_path, **{name: text}))
    assert len(run.notes) == 1
    assert run.notes[0].startswith(name)
    assert run.notes[0] in Page(render_html([run])).text


def test_a_line_that_a_killed_run_left_half_is_left_out(tmp_path):
    text = '{"epoch": 1, "acc1": 50.0}\n{"epoch": 2, "ac'
    run = collect(write_run(tmp_path, **{"thin/train/metrics.jsonl": text}))
    assert run.notes == ("thin/train/metrics.jsonl: 1 damaged lines are left out.",)
    assert [epoch.acc1 for epoch in run.chains[0].curves[0].epochs] == [50.0]


def test_a_step_that_is_not_finished_is_named(tmp_path):
    write_run(tmp_path, **{"thin/compare/done.json": None, "thin/compare/started.json": "{}"})
    assert collect(tmp_path).notes == ("thin/compare is not finished, so it is left out.",)


BAD = [None, True, "NaN", [], {}, -1, 1e300, 10**400, float("nan"), 5e-324, "\ud800\x1b[2J",
       "x" * 10_000]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:12])
def test_any_value_may_be_any_other(tmp_path, bad):
    """All values of each file in turn, at every depth: the page is written, and nests."""
    write_run(tmp_path)
    for path in sorted(tmp_path.rglob("*.json")):
        whole = path.read_text(encoding="utf-8")
        value = json.loads(whole)
        if path.name == "done.json":
            value["figures"] = _spoiled(value["figures"], bad)
        else:
            value = _spoiled(value, bad)
        path.write_text(json.dumps(value))
        html = render_html([collect(tmp_path)])
        html.encode("utf-8")
        Page(html)
        path.write_text(whole, encoding="utf-8")


def _spoiled(value, bad):
    """Return the value with something else in the place of all that is no list or object."""
    if isinstance(value, dict):
        return {name: _spoiled(each, bad) for name, each in value.items()}
    if isinstance(value, list):
        return [_spoiled(each, bad) for each in value]
    return bad


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserInputError, match="no finished step"):
        collect(tmp_path)
    with pytest.raises(UserInputError, match="is not a folder"):
        collect(tmp_path / "nowhere")
