"""Tasks side by side: the same results, nothing lost when a process is killed."""

import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.errors import CompressError, ToolchainError, UnsupportedModelError, UserInputError
from compress.files import write_json, write_text
from compress.recipe.engine import Context, run_tasks
from compress.recipe.jobs import Run, local_processes, run_side_by_side, slurm_jobs
from compress.recipe.plan import Task

FAN = ("a", "b", "c")
TASKS = [
    Task(name="first", kind="count", options={"n": 1}),
    *(Task(name=f"fan/{x}", kind="count", options={"n": ord(x)}, needs=("first",)) for x in FAN),
    Task(name="compare", kind="compare", needs=tuple(f"fan/{x}" for x in FAN)),
]
SECONDS = 0.2  # that a task takes


def count(times: Path, context: Context) -> dict:
    """Sum what is below; note when it began and ended, and in which process."""
    began, options = time.monotonic(), context.task.options
    if options.get("fail"):
        raise UnsupportedModelError("no γ; expected some")
    if options.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if options.get("meet"):
        wait_for_others(times.parent / "met", options["meet"])
    for step in range(4):  # as training does: what was saved is not done again
        path = context.folder / f"{step}.txt"
        if not path.exists():
            time.sleep(SECONDS / 4)
            write_text(path, str(step))
    with open(times, "a") as file:
        file.write(json.dumps([context.task.name, began, time.monotonic(), os.getpid()]) + "\n")
    below = sum(outcome.figures["sum"] for outcome in context.inputs.values())
    return {"sum": below + options.get("n", 0)}


def wait_for_others(folder: Path, number: int) -> None:
    """Return when so many processes have come here."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < number:
        assert time.monotonic() < deadline, "the others do not come"
        time.sleep(0.01)


def load_work(times: Path) -> dict:
    return dict.fromkeys(("count", "compare"), functools.partial(count, times))


@pytest.fixture
def times(tmp_path):
    """Give what ran, by name: when it began and ended, and in which process."""
    path = tmp_path / "times.jsonl"
    path.touch()
    return lambda: {
        name: (began, ended, process)
        for name, began, ended, process in map(json.loads, path.read_text().splitlines())
    }


@pytest.fixture(scope="module")
def two_processes():
    with local_processes(2) as executor:
        yield functools.partial(run_side_by_side, executor=executor, jobs=2, threads=2)


def a_run(folder: Path, tasks=TASKS, seed: int = 0) -> Run:
    work = functools.partial(load_work, folder.parent / "times.jsonl")
    return Run(tasks=tasks, load_work=work, folder=folder, identity={"seed": seed})


def in_one_process(folder: Path, tasks=TASKS) -> None:
    run_tasks(tasks, load_work(folder.parent / "times.jsonl"), folder, identity={"seed": 0})


TASK_NAMES = {task.name for task in TASKS}


def with_option(name: str, tasks=TASKS, **options) -> list[Task]:
    return [
        Task(name=task.name, kind=task.kind, options={**task.options, **options}, needs=task.needs)
        if task.name == name
        else task
        for task in tasks
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_ready_runs_at_once_and_what_measures_runs_alone(tmp_path, times, two_processes):
    tasks = with_option("fan/b", with_option("fan/a", meet=2), meet=2)
    (outcomes,) = two_processes([a_run(tmp_path / "run", tasks)])
    assert outcomes["compare"].figures == {"sum": 3 * 1 + sum(map(ord, FAN))}
    seen = times()
    assert os.getpid() not in {process for _, _, process in seen.values()}
    assert seen["fan/a"][2] != seen["fan/b"][2]
    fans = [seen[f"fan/{x}"] for x in FAN]
    assert seen["first"][1] <= min(began for began, _, _ in fans)
    assert max(ended for _, ended, _ in fans) <= seen["compare"][0]


def test_the_results_are_those_of_one_process(tmp_path, two_processes):
    two_processes([a_run(tmp_path / "many")])
    in_one_process(tmp_path / "one")
    one, many = files_of(tmp_path / "one"), files_of(tmp_path / "many")
    assert {name: many[name] for name in one} == one
    assert all(name.endswith(".lock") for name in set(many) - set(one))


def test_either_way_goes_on_with_what_the_other_left(tmp_path, times, two_processes):
    in_one_process(tmp_path / "run", TASKS[:3])
    before = times()
    two_processes([a_run(tmp_path / "run")])
    after = times()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"fan/c", "compare"}
    in_one_process(tmp_path / "run")
    assert times() == after


def test_several_runs_share_the_processes_and_what_measures_has_no_company(tmp_path, two_processes):
    runs = [a_run(tmp_path / f"seed-{seed}", seed=seed) for seed in range(2)]
    outcomes = two_processes(runs)
    assert [each["compare"].figures["sum"] for each in outcomes] == [297, 297]
    lines = (tmp_path / "times.jsonl").read_text().splitlines()
    spans = [(began, ended, name) for name, began, ended, _ in map(json.loads, lines)]
    assert len(spans) == 10
    for began, ended, name in spans:
        others = [span for span in spans if span != (began, ended, name)]
        alone = all(end <= began or start >= ended for start, end, _ in others)
        assert alone or name != "compare"


def test_fresh_runs_everything_again(tmp_path, times, two_processes):
    two_processes([a_run(tmp_path / "run")])
    before = times()
    two_processes([a_run(tmp_path / "run")], fresh=True)
    assert all(times()[name] != before[name] for name in TASK_NAMES)


def test_a_failure_is_told_when_the_others_have_ended(tmp_path, times, two_processes):
    tasks = with_option("fan/b", fail=True)
    with pytest.raises(UnsupportedModelError) as told:
        two_processes([a_run(tmp_path / "run", tasks)])
    assert "[3/5] fan/b: no γ; expected some" in str(told.value)
    kept = times()
    assert {"first", "fan/a"} <= set(kept) <= {"first", "fan/a", "fan/c"}
    two_processes([a_run(tmp_path / "run")])
    assert set(times()) == TASK_NAMES
    assert {name: times()[name] for name in kept} == kept


def test_a_killed_process_is_told_and_the_run_goes_on_next_time(tmp_path, times, two_processes):
    tasks = with_option("fan/b", kill=True)
    message = r"killed while .*fan/b.* ran .*start the run again"
    with local_processes(2) as executor, pytest.raises(CompressError, match=message):
        run_side_by_side([a_run(tmp_path / "run", tasks)], executor, jobs=2, threads=2)
    first = times()["first"]
    (outcomes,) = two_processes([a_run(tmp_path / "run")])
    assert outcomes["compare"].figures == {"sum": 297}
    assert times()["first"] == first


def test_two_runs_at_once_do_not_meet(tmp_path, two_processes):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserInputError, match="another process is running"):
            two_processes([a_run(tmp_path / "run")])


def test_a_job_waits_for_one_of_an_earlier_run_at_the_same_task(tmp_path, times, two_processes):
    write_json(tmp_path / "run" / ".compress-run.json", {"format": "compress.run/1"})
    code = (
        "import fcntl, sys, time\n"
        "lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(0.7)\n"
        "print(time.monotonic(), flush=True)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "run" / ".first.lock"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    two_processes([a_run(tmp_path / "run", TASKS[:1])])
    assert times()["first"][0] >= float(holder.communicate()[0])


PLANNER = """
import sys
from tests.recipe.test_jobs import *
if __name__ == "__main__":
    with local_processes(2) as executor:
        (outcomes,) = run_side_by_side([a_run(Path(sys.argv[1]))], executor, jobs=2, threads=2)
    print(outcomes["compare"].figures["sum"])
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_like_an_undisturbed_run(tmp_path):
    """The planner is killed at many points; its processes end with it, or finish unharmed."""
    command = [sys.executable, "-c", PLANNER]
    for attempt in range(5):
        process = subprocess.Popen([*command, tmp_path / "killed"])
        time.sleep(3 + 0.9 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for name in ("killed", "whole"):
        done = subprocess.run([*command, tmp_path / name], capture_output=True, check=True)
        assert done.stdout.strip() == b"297"
    whole, killed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert {name: killed[name] for name in whole} == whole
    assert all(name.endswith(".part") for name in set(killed) - set(whole))


def test_the_processes_end_when_the_planner_is_killed(tmp_path):
    code = (
        "import os, sys, time\n"
        "from compress.recipe.jobs import local_processes\n"
        "if __name__ == '__main__':\n"
        "    with local_processes(1) as executor:\n"
        "        print(executor.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    planner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(planner.stdout.readline())
    planner.kill()
    planner.communicate()
    deadline = time.monotonic() + 10
    while is_alive(worker):
        assert time.monotonic() < deadline, "the process outlived its planner"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Whether it runs; one that ended and waits to be noticed by its parent does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_slurm_without_submitit_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ToolchainError, match=r"early-exit-compress\[slurm\]"):
        slurm_jobs(tmp_path, {"partition": "gpu"})


@pytest.mark.slow
def test_jobs_of_submitit(tmp_path, times):
    pytest.importorskip("submitit")
    executor = slurm_jobs(tmp_path / "slurm", {"timeout_min": 5}, cluster="local")
    (outcomes,) = run_side_by_side([a_run(tmp_path / "run")], executor, jobs=3, threads=None)
    assert outcomes["compare"].figures == {"sum": 297}
    assert os.getpid() not in {process for _, _, process in times().values()}
