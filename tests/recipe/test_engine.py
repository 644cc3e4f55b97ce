import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.errors import UnsupportedModelError, UserInputError
from compress.files import write_text
from compress.recipe.engine import Context, run_tasks
from compress.recipe.plan import Task

TASKS = [
    Task(name="first", kind="count", options={"n": 1}),
    Task(name="second/a", kind="count", options={"n": 10}, needs=("first",)),
    Task(name="second/b", kind="count", options={"n": 20}, needs=("first",)),
    Task(name="last", kind="count", options={"n": 0}, needs=("second/a", "second/b")),
]


class Counting:
    """Adds up its inputs and its option, and notes what was really run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, context: Context) -> dict:
        self.ran.append(context.task.name)
        below = sum(outcome.figures["sum"] for outcome in context.inputs.values())
        total = below + context.task.options["n"]
        write_text(context.folder / "sum.txt", str(total))
        return {"sum": total}


def run(run_dir, tasks=TASKS, identity=None, **options):
    work = Counting()
    outcomes = run_tasks(
        tasks, {"count": work}, run_dir, identity=identity or {"seed": 0}, **options
    )
    return work.ran, outcomes


def test_results_flow_and_nothing_runs_twice(tmp_path):
    ran, outcomes = run(tmp_path)
    assert ran == ["first", "second/a", "second/b", "last"]
    assert outcomes["last"].figures == {"sum": 32}
    ran, outcomes = run(tmp_path)
    assert ran == []
    assert outcomes["last"].figures == {"sum": 32}


def test_a_changed_option_repeats_what_depends_on_it(tmp_path):
    run(tmp_path)
    tasks = [
        *TASKS[:2],
        Task(name="second/b", kind="count", options={"n": 21}, needs=("first",)),
        TASKS[3],
    ]
    ran, outcomes = run(tmp_path, tasks)
    assert ran == ["second/b", "last"]
    assert outcomes["last"].figures == {"sum": 33}


def test_other_data_or_seed_repeat_everything(tmp_path):
    run(tmp_path)
    assert run(tmp_path, identity={"seed": 1})[0] == [task.name for task in TASKS]


@pytest.mark.parametrize("damage", ["delete", "change", "no record", "half a record"])
def test_a_damaged_result_is_made_again(tmp_path, damage):
    run(tmp_path)
    folder = tmp_path / "second/a"
    if damage == "delete":
        (folder / "sum.txt").unlink()
    elif damage == "change":
        (folder / "sum.txt").write_text("12")
    elif damage == "no record":
        (folder / "done.json").unlink()
    else:
        (folder / "done.json").write_text('{"fingerprint": "')
    ran, _ = run(tmp_path)
    assert ran == ["second/a"]
    assert (folder / "sum.txt").read_text() == "11"


def test_fresh_runs_everything_again(tmp_path):
    run(tmp_path)
    assert len(run(tmp_path, fresh=True)[0]) == 4


def test_a_failed_task_names_itself_and_keeps_what_is_finished(tmp_path):
    def fail(context: Context) -> dict:
        raise UnsupportedModelError("no γ; expected some")

    work = Counting()
    tasks = [TASKS[0], Task(name="broken", kind="fail", needs=("first",))]
    with pytest.raises(UnsupportedModelError, match=r"\[2/2\] broken: no γ; expected some"):
        run_tasks(tasks, {"count": work, "fail": fail}, tmp_path, identity={})
    run_tasks(tasks[:1], {"count": work}, tmp_path, identity={})
    assert work.ran == ["first"]


def test_leftovers_of_another_fingerprint_are_moved_aside_and_own_ones_kept(tmp_path):
    run(tmp_path)
    (tmp_path / "first" / "half.bin").write_text("from an interrupted run")
    (tmp_path / "first" / "done.json").unlink()
    run(tmp_path)
    assert (tmp_path / "first" / "half.bin").exists()
    run(tmp_path, identity={"seed": 1})
    assert not (tmp_path / "first" / "half.bin").exists()
    assert (tmp_path / "first.superseded-1" / "half.bin").exists()


SLOW_RUN = """
import sys, time
from pathlib import Path
from compress.files import write_text
from compress.recipe.engine import run_tasks
from compress.recipe.plan import Task

def slow(context):
    for i in range(20):
        path = context.folder / f"{i}.txt"
        if not path.exists():
            write_text(path, str(i))
            time.sleep(0.01)
    return {"sum": sum(o.figures["sum"] for o in context.inputs.values()) + 1}

tasks = [Task(name=f"t{n}", kind="slow", needs=(f"t{n - 1}",) if n else ()) for n in range(4)]
done = run_tasks(tasks, {"slow": slow}, Path(sys.argv[1]), identity={})
print(done["t3"].figures["sum"])
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(tmp_path):
    command = [sys.executable, "-c", SLOW_RUN]
    for attempt in range(8):
        process = subprocess.Popen([*command, tmp_path / "killed"], stdout=subprocess.PIPE)
        time.sleep(0.25 + 0.06 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for name in ("killed", "whole"):
        done = subprocess.run([*command, tmp_path / name], capture_output=True, check=True)
        assert done.stdout.strip() == b"4"
    whole = files_of(tmp_path / "whole")
    killed = files_of(tmp_path / "killed")
    assert killed == whole


def test_two_runs_at_once_do_not_meet(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "t0" / "1.txt").exists():
            time.sleep(0.005)
        with pytest.raises(UserInputError, match="another process is running"):
            run(tmp_path)
    finally:
        out, _ = holder.communicate(timeout=30)
    assert out.strip() == "4"
    assert run(tmp_path / "other")[0]


def test_the_record_holds_the_sha256_of_every_file(tmp_path):
    run(tmp_path)
    record = json.loads((tmp_path / "first" / "done.json").read_text())
    assert set(record["files"]) == {"sum.txt"}
    assert os.path.getsize(tmp_path / "first" / "done.json") > 0
