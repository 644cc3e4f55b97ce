"""A run that is killed, stopped or met by another ends as one that was left alone.

The recipe trains, slims, fine-tunes and tells; 50 times a process that runs it dies by SIGKILL, at
a random place: before a file is synced, or just before or after it takes its name.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.signals import heed_interrupts

TRAINING = {"epochs": 2, "batch_size": 512}
RECIPE = {
    "name": "tiny",
    "data": "digits",
    "image_size": 4,
    "steps": [
        {
            "train": {
                "model": {"arch": "vgg", "widths": [[4, 4]], "hidden": [], "pooled": 1},
                "sparsity_lambda": 0.01,
                **TRAINING,
            }
        },
        {"slim": {"ratios": [0.5], "round_to": 1, "min_channels": 1}},
        {"finetune": TRAINING},
        {"compare": {"seconds": 0.01}},
    ],
}
KILLS = 50
LAST_PLACE = 25  # of those at which a process dies; a whole run passes some 150
TIMED = {"state.pt", "table.json", "table.txt", "gamma.svg"}  # the clock, ids of a process
CLOCK = ("time_s", "images_per_s")


def run(recipe: Path, folder: Path, place: int = 0) -> None:
    """Run the recipe in this process, which dies at the given place of those that are passed."""
    if place:
        _die_at(place)
    import torch

    from compress.run import main

    torch.set_num_threads(1)
    sys.exit(main([str(recipe), "-o", str(folder), "-q"]))


def _die_at(place: int) -> None:
    passed = 0

    def around(work: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def note() -> None:
            nonlocal passed
            passed += 1
            if passed == place:
                os.kill(os.getpid(), signal.SIGKILL)

        def done(*arguments: Any) -> Any:
            note()
            result = work(*arguments)
            if after:
                note()
            return result

        return done

    os.fsync = around(os.fsync, after=False)
    os.replace = around(os.replace, after=True)
    os.rename = around(os.rename, after=True)


def in_a_process(*arguments: Any) -> int | None:
    context = multiprocessing.get_context("forkserver")
    modules = ["accelerate", "torch._dynamo", "sklearn.datasets", "compress.recipe.run", __name__]
    context.set_forkserver_preload(modules)
    process = context.Process(target=run, args=arguments)
    process.start()
    process.join(timeout=120)
    return process.exitcode


def end_of(folder: Path) -> dict[str, Any]:
    """Everything that two runs must share: bytes of checkpoints, records and figures."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[name] = [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
        elif path.name == "done.json":
            done = json.loads(path.read_text())
            assert done["files"], name
            found[name] = (done["fingerprint"], done["figures"], sorted(done["files"]))
        else:
            told = path.is_dir() or path.name in TIMED
            found[name] = "there" if told else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert in_a_process(recipe, folder) == 0
    return end_of(folder)


@pytest.mark.slow
def test_killed_at_50_places(recipe, undisturbed, tmp_path):
    numbers, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        code = in_a_process(recipe, tmp_path / str(runs), numbers.randint(1, LAST_PLACE))
        kills += code == -signal.SIGKILL
        if code == 0:
            assert end_of(tmp_path / str(runs)) == undisturbed
            runs += 1
        else:
            assert code == -signal.SIGKILL
    assert in_a_process(recipe, tmp_path / str(runs)) == 0
    assert end_of(tmp_path / str(runs)) == undisturbed


def started(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "compress", "run", str(recipe), "-o", str(folder), "-q"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_interrupts,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        pytest.param(signal.SIGINT, 130, "python -m compress run: interrupted\n", id="SIGINT"),
        pytest.param(signal.SIGTERM, -signal.SIGTERM, "", id="SIGTERM"),
    ],
)
def test_stopped_by_a_signal(recipe, undisturbed, tmp_path, sent, code, words):
    process = started(recipe, tmp_path / "run")
    wait_for(tmp_path / "run" / "train" / "best.pth")
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, words)
    assert in_a_process(recipe, tmp_path / "run") == 0
    assert end_of(tmp_path / "run") == undisturbed


@pytest.mark.slow
def test_two_runs_at_once(recipe, undisturbed, tmp_path):
    process = started(recipe, tmp_path / "run")
    wait_for(tmp_path / "run" / "recipe.json")
    process.send_signal(signal.SIGSTOP)  # it holds the run
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**RECIPE, "seed": 7}))
    assert in_a_process(other, tmp_path / "run") == 3
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=120) == (None, "")
    assert end_of(tmp_path / "run") == undisturbed
