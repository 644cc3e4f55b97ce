"""The shipped quickstart, shortened only by overrides, and killed while it trains."""

import json
import signal
import subprocess
import sys
import time

import onnx
import pytest

import compress
from compress.run import main

SHORT = [
    "recipes/quickstart.yaml",
    "--set", "train.epochs=2",
    "--set", "train.warmup_epochs=0",
    "--set", "finetune.epochs=1",
    "--set", "compare.seconds=0.2",
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
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert [row["ratio"] for row in rows] == [None, 0.2, 0.4, 0.6]
    assert [row["macs"] for row in rows] == sorted((row["macs"] for row in rows), reverse=True)
    for row in rows[1:]:
        assert 0 <= row["true_pruned_ratio"] <= row["ratio"]  # rounding up removes less
        assert 0 <= row["acc1_slimmed"] <= 100
        assert 0 <= row["acc1_finetuned"] <= 100
        assert set(row["latency_ms"]) == {"torch", "onnx"}


@pytest.mark.slow
def test_every_file_opens(short_run):
    for ratio in ("0.2", "0.4", "0.6"):
        slim = compress.load(short_run / "slim" / ratio / "slim.pth")
        tuned = compress.load(short_run / "finetune" / ratio / "best.pth")
        assert slim.config["widths"] == tuned.config["widths"]
        graph = onnx.load(short_run / "export" / ratio / "model.onnx")
        first = next(t for t in graph.graph.initializer if list(t.dims[1:]) == [3, 3, 3])
        assert first.dims[0] == slim.config["widths"][0][0]
    assert (short_run / "train" / "gamma.svg").read_text().count("<svg") == 1


@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(short_run, tmp_path):
    command = [sys.executable, "-m", "compress", "run", *SHORT, "-o", str(tmp_path)]
    for seconds in (4, 6, 8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    for name in ("slim/0.4/slim.pth", "finetune/0.6/best.pth"):
        one, other = (compress.load(folder / name).state_dict() for folder in (short_run, tmp_path))
        assert all(one[key].equal(other[key]) for key in one), f"{name} differs"


def test_dry_run_prints_the_plan_and_makes_nothing(tmp_path, capsys):
    assert main([*SHORT, "-o", str(tmp_path / "run"), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan[0]["options"]["epochs"] == 2
    assert len(plan) == 12
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe(capsys):
    assert main(["recipes/none.yaml"]) == 3
    assert "recipe recipes/none.yaml does not exist" in capsys.readouterr().err


def test_data_that_are_not_there(capsys, tmp_path):
    assert main([*SHORT, "--data", f"cifar10:{tmp_path}/none", "-o", str(tmp_path / "run")]) == 3
    assert "none" in capsys.readouterr().err
