"""The shipped quickstart, shortened only by overrides, and killed while it trains."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import compress
from compress.recipe.schema import read_recipe
from compress.run import main
from compress.runtime.exit_spelling import spelled
from compress.runtime.manifest import read_manifest

RECIPE = Path("recipes/quickstart.yaml")

SHORT = [
    "recipes/quickstart.yaml",
    "--set", "train.epochs=2",
    "--set", "train.warmup_epochs=0",
    "--set", "finetune.epochs=1",
    "--set", "distil.epochs=2",
    "--set", "distil.warmup_epochs=0",
    "--set", "exits.epochs=2",
    "--set", "exits.head_warmup_epochs=1",
    "--set", "compare.seconds=0.2",
    "--set", "benchmark.seconds=0.2",
    "--set", "benchmark.idle_seconds=0.1",
    "--set", "benchmark.memory=false",
    "-q",
]  # fmt: skip


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("quickstart")
    assert main([*SHORT, "-o", str(run_dir)]) == 0
    return run_dir


@pytest.mark.slow
def test_table_holds_every_network(short_run, capsys):
    assert main([*SHORT, "-o", str(short_run), "--json"]) == 0  # nothing is run again
    tables = json.loads(capsys.readouterr().out)["tables"]
    rows = tables["vgg/compare"]["rows"]
    assert [row["ratio"] for row in rows] == [None, 0.2, 0.4, 0.6]
    assert [row["macs"] for row in rows] == sorted((row["macs"] for row in rows), reverse=True)
    for row in rows[1:]:
        assert 0 <= row["true_pruned_ratio"] <= row["ratio"]  # rounding up removes less
        assert 0 <= row["acc1_slimmed"] <= 100
        assert 0 <= row["acc1_finetuned"] <= 100
        assert set(row["latency_ms"]) == {"torch", "onnx"}
    rows = {row["network"]: row for row in tables["gfnet/compare"]["rows"]}
    assert list(rows) == ["baseline", "distilled", "dynn", "distilled dynn"]
    assert rows["distilled"]["params"] < rows["baseline"]["params"] < rows["dynn"]["params"]
    for name in ("dynn", "distilled dynn"):
        assert 0 < rows[name]["expected_macs"] <= rows[name]["macs"] * 1.01
        assert rows[name]["planned"]
        assert rows[name]["latency_ms"]["bundle"]["median"] > 0


@pytest.mark.slow
def test_every_file_opens(short_run):
    for ratio in ("0.2", "0.4", "0.6"):
        slim = compress.load(short_run / "vgg" / "slim" / ratio / "slim.pth")
        tuned = compress.load(short_run / "vgg" / "finetune" / ratio / "best.pth")
        assert slim.config["widths"] == tuned.config["widths"]
        graph = onnx.load(short_run / "vgg" / "export" / ratio / "model.onnx")
        first = next(t for t in graph.graph.initializer if list(t.dims[1:]) == [3, 3, 3])
        assert first.dims[0] == slim.config["widths"][0][0]
    dynn = compress.load(short_run / "gfnet" / "exits" / "dynn" / "best.pth")
    assert (
        dynn.config["exits"] == read_recipe(RECIPE).checked_chains()["gfnet"][2].options.positions
    )
    assert "* Acc@1 " in (short_run / "gfnet" / "evaluate" / "dynn" / "sweep.txt").read_text()
    assert (short_run / "vgg" / "train" / "gamma.svg").read_text().count("<svg") == 1


@pytest.mark.slow
def test_the_bundle_decides_as_torch_and_the_report_is_there(short_run):
    for name in ("baseline", "dynn", "distilled-dynn"):
        done = json.loads((short_run / "gfnet" / "dispatch" / name / "done.json").read_text())
        figures = done["figures"]
        assert figures["same_decisions"] == figures["images"] == 450
    plan = json.loads((short_run / "gfnet" / "plan" / "dynn" / "plan.json").read_text())
    manifest = read_manifest(short_run / "gfnet" / "export" / "dynn" / "bundle")
    assert [spelled(segment.at) for segment in manifest.segments[:-1]] == plan["exits"]
    assert manifest.thresholds == plan["thresholds"]
    page = (short_run / "gfnet" / "report" / "report.html").read_text()
    assert "optimal stopping" in page


@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(short_run, tmp_path):
    command = [sys.executable, "-m", "compress", "run", *SHORT, "-o", str(tmp_path)]
    for seconds in (4, 6, 8, 10, 12, 14):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    for name in ("vgg/slim/0.4/slim.pth", "vgg/finetune/0.6/best.pth", "gfnet/exits/dynn/best.pth"):
        one, other = (compress.load(folder / name).state_dict() for folder in (short_run, tmp_path))
        assert all(one[key].equal(other[key]) for key in one), f"{name} differs"


def test_dry_run_prints_the_plan_and_makes_nothing(tmp_path, capsys):
    assert main([*SHORT, "-o", str(tmp_path / "run"), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan[0]["options"]["epochs"] == 2
    assert len(plan) == 31
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe(capsys):
    assert main(["recipes/none.yaml"]) == 3
    assert "recipe recipes/none.yaml does not exist" in capsys.readouterr().err


def test_data_that_are_not_there(capsys, tmp_path):
    assert main([*SHORT, "--data", f"cifar10:{tmp_path}/none", "-o", str(tmp_path / "run")]) == 3
    assert "none" in capsys.readouterr().err
