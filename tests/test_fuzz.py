"""The fuzzer notices every harm that a reader can do, and repeats a case from its number."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.errors import UserInputError
from tools.fuzz import Limits, fuzz
from tools.fuzzing.kind import Kind
from tools.fuzzing.mutations import damage_bytes, mutate_json
from tools.fuzzing.worker import case_of

LIMITS = Limits(seconds=0.5, memory=64 << 20)


def refuses(case: Path) -> None:
    raise UserInputError("the file is damaged; expected a good one")


def allocates(case: Path) -> None:
    assert bytearray(os.urandom(1 << 20)) * 128


def hangs(case: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass


def writes_outside(case: Path) -> None:
    (case.parent / "outside").write_text("x")


READERS = {
    "refused": refuses,
    "accepted": lambda case: (case / "own").write_text("x") and None,
    "traceback": lambda case: [][1],
    "hang": hangs,
    "crash": lambda case: os.kill(os.getpid(), signal.SIGKILL),
    "code": lambda case: os.mkdir(case / "canary"),
    "outside": writes_outside,
    "memory": allocates,
}


@pytest.mark.parametrize("outcome", READERS)
def test_every_outcome_is_told_from_the_others(tmp_path, outcome):
    seed = tmp_path / "seed"
    seed.mkdir()
    kind = Kind(name="k", seeds=(seed,), mutate=lambda rng, case: None, read=READERS[outcome])
    good = Kind(name="good", seeds=(seed,), mutate=lambda rng, case: None, read=refuses)
    counts = fuzz([kind, good], range(4), folder=tmp_path / "cases", limits=LIMITS)
    cases = 2
    assert counts.outcomes["k"] == {outcome: cases}
    assert counts.outcomes["good"] == {"refused": 2}  # what follows a crash is still read
    harmful = outcome not in ("refused", "accepted")
    assert [number for number, *_ in sorted(counts.harmful)] == ([0, 2] if harmful else [])


def test_a_command_that_is_run_is_noticed(tmp_path):
    (tmp_path / "seed").mkdir()
    kind = Kind(
        name="k",
        seeds=(tmp_path / "seed",),
        mutate=lambda rng, case: None,
        read=lambda case: os.system("true") and None,
    )
    counts = fuzz([kind], [0], folder=tmp_path / "cases", limits=LIMITS)
    assert counts.outcomes["k"] == {"code": 1}


def test_a_case_depends_on_seed_and_number_alone():
    kinds = [Kind(name=n, seeds=(), mutate=lambda r, c: None, read=refuses) for n in "abc"]
    drawn = {}
    for number in (5, 2, 5):
        kind, rng = case_of(kinds, 7, number)
        value = (kind.name, damage_bytes(rng, bytes(100)), str(mutate_json(rng, {"a": [1, {}]})))
        assert drawn.setdefault(number, value) == value
    assert drawn[5] != drawn[2]
    assert case_of(kinds, 8, 5)[1].random() != case_of(kinds, 7, 5)[1].random()


@pytest.mark.slow
def test_checkpoints_do_no_harm():
    root = Path(__file__).parents[1]
    command = [sys.executable, "tools/fuzz.py", "--cases", "60"]
    done = subprocess.run(
        [*command, "--kinds", "checkpoint", "safetensors"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 harmful cases" in done.stdout
