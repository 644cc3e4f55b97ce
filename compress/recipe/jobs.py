"""Run the tasks of one or more recipes side by side, each in a process of its own.

A task starts as soon as what it needs is done and a process is free: three ratios are slimmed and
fine-tuned at once, three seeds trained at once. What measures time runs alone. Processes are local,
or jobs of a Slurm cluster that shares the folder of the run.

The results are those of a run in one process, except that each process has its share of the cores,
and torch rounds sums otherwise when other numbers of threads add them up.

Nothing is lost when something is killed. The process that plans holds the lock of the run; every
task is worked on under a lock of its own, so a job that outlives its planner and the same task of
the next run do not meet. Local processes end with their planner.
"""

import fcntl
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compress.errors import CompressError, UserInputError
from compress.optional import require
from compress.recipe.engine import (
    Context,
    Outcome,
    Work,
    fingerprint_of,
    finished,
    run_one,
)
from compress.recipe.plan import Task
from compress.recipe.run_folder import clear_task, opened_run

__all__ = ["Executor", "Run", "local_processes", "run_side_by_side", "slurm_jobs"]

logger = logging.getLogger(__name__)

ALONE = frozenset({"benchmark", "compare"})  # kinds of task that measure time
SECONDS_PER_LOOK = 0.05
# Settings of submitit that mean the same on every cluster; others are Slurm's own.
GENERAL = frozenset(
    {"cpus_per_task", "gpus_per_node", "mem_gb", "name", "nodes", "tasks_per_node", "timeout_min"}
)
WorkLoader = Callable[[], Mapping[str, Work]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One recipe with what its tasks depend on.

    Attributes:
        tasks: in an order in which they can run.
        load_work: called in the process that works; must be picklable. Gives the work per kind.
        folder: of the run.
        identity: JSON values that decide every task.
        recipe_json: for the recipe.json of the run.
    """

    tasks: Sequence[Task]
    load_work: WorkLoader
    folder: Path
    identity: Mapping[str, Any]
    recipe_json: str | None = None


class Job(Protocol):
    """A call in another process: whether it ended, and what it returned or raised."""

    def done(self) -> bool: ...

    def result(self) -> Any: ...


class Executor(Protocol):
    """Hands calls over to other processes."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Job:
        """Have the function called there; it and the arguments must be picklable."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Unit:
    run: Run
    task: Task
    place: str  # names it in messages


def run_side_by_side(
    runs: Sequence[Run], executor: Executor, *, jobs: int, threads: int | None, fresh: bool = False
) -> list[dict[str, Outcome]]:
    """Run what is not done yet of all runs, up to `jobs` tasks at a time.

    Args:
        runs: each with a folder of its own.
        executor: see `local_processes` and `slurm_jobs`.
        jobs: at least 1.
        threads: of the machine, which the jobs share; None leaves them alone.
        fresh: clear the runs first.

    Returns:
        For each run the outcome of every task by name.

    Raises:
        UserInputError: another process works on one of the runs.
        CompressError: a task failed, or its process was killed; what runs beside it is finished
            first, and what is finished is kept.
    """
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(opened_run(run.folder, run.recipe_json))
            for task in run.tasks if fresh else ():
                clear_task(run.folder, task.name)
        schedule = _Schedule(runs, executor, jobs=jobs, threads=threads)
        while schedule.goes_on():
            schedule.collect()
        if schedule.failure is not None:
            raise schedule.failure
        return [schedule.outcomes[run.folder] for run in runs]


class _Schedule:
    """What waits, what runs, and what is done."""

    def __init__(
        self, runs: Sequence[Run], executor: Executor, *, jobs: int, threads: int | None
    ) -> None:
        self.waiting = _units(runs)
        self.running: dict[str, tuple[_Unit, Job, float]] = {}
        self.outcomes: dict[Path, dict[str, Outcome]] = {run.folder: {} for run in runs}
        self.failure: Exception | None = None
        self._executor, self._jobs, self._threads = executor, jobs, threads

    def goes_on(self) -> bool:
        """Start what can start; tell whether anything is left to wait for."""
        if self.failure is not None:
            self.waiting = []
        progress = True
        while progress:  # a task that is unchanged makes others ready at once
            ready = [unit for unit in self.waiting if self._may_start(unit)]
            progress = bool(ready)
            if ready:
                self.waiting.remove(ready[0])
                self._start(ready[0])
        return bool(self.running)

    def collect(self) -> None:
        """Wait until something ended, and note how."""
        ended = [place for place, (_, job, _) in self.running.items() if job.done()]
        if not ended:
            time.sleep(SECONDS_PER_LOOK)
        for place in ended:
            unit, job, started = self.running.pop(place)
            try:
                self._note(unit, job.result(), time.monotonic() - started)
            except BrokenExecutor:
                self._fail(_killed([place, *self.running]))
            except Exception as err:  # told when the others have ended
                self._fail(err)

    def _note(self, unit: _Unit, result: Outcome | CompressError, seconds: float) -> None:
        if isinstance(result, CompressError):
            raise result
        self.outcomes[unit.run.folder][unit.task.name] = result
        logger.info("%s: done in %.1f s", unit.place, seconds)

    def _fail(self, err: Exception) -> None:
        if self.failure is None:
            self.failure = err
            if self.running:
                logger.warning("%s; waiting for %s", err, ", ".join(self.running))

    def _may_start(self, unit: _Unit) -> bool:
        done = self.outcomes[unit.run.folder]
        if len(self.running) >= self._jobs or any(need not in done for need in unit.task.needs):
            return False
        if any(other.task.kind in ALONE for other, _, _ in self.running.values()):
            return False
        return unit.task.kind not in ALONE or not self.running

    def _start(self, unit: _Unit) -> None:
        done, task, folder = self.outcomes[unit.run.folder], unit.task, unit.run.folder
        inputs = {name: done[name] for name in task.needs}
        fingerprint = fingerprint_of(task, inputs, unit.run.identity)
        context = Context(task=task, folder=folder / task.name, inputs=inputs)
        found = finished(context, fingerprint)
        if found is not None:
            logger.info("%s: unchanged, not run again", unit.place)
            done[task.name] = found
            return
        logger.info("%s: started", unit.place)
        job = self._executor.submit(
            _perform, unit.run.load_work, context, fingerprint, unit.place, self._share(task)
        )
        self.running[unit.place] = (unit, job, time.monotonic())

    def _share(self, task: Task) -> int | None:
        if self._threads is None or task.kind in ALONE:
            return self._threads
        return max(1, self._threads // self._jobs)


def _units(runs: Sequence[Run]) -> list[_Unit]:
    several = len(runs) > 1
    return [
        _Unit(
            run=run,
            task=task,
            place=f"[{number}/{len(run.tasks)}] {f'{run.folder.name}/' if several else ''}"
            f"{task.name}",
        )
        for run in runs
        for number, task in enumerate(run.tasks, start=1)
    ]


def _killed(places: Sequence[str]) -> CompressError:
    return CompressError(
        f"a process was killed while {' and '.join(places)} ran (out of memory?); finished steps "
        "are kept, so start the run again to go on, with fewer --jobs where memory is short"
    )


def _perform(
    load_work: WorkLoader, context: Context, fingerprint: str, place: str, threads: int | None
) -> Outcome | CompressError:
    """Do a task, in the process that it was handed over to; errors of ours are returned."""
    _label_logs(context.task.name)
    if threads is not None:
        require("torch", "running recipes").set_num_threads(threads)
    try:
        with _task_lock(context.folder):
            return run_one(context, load_work()[context.task.kind], fingerprint, place)
    except CompressError as err:
        return err


def _label_logs(name: str) -> None:
    """Say in front of every warning which task it is of; the planner tells the rest."""
    logging.basicConfig(format=f"{name}: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("compress").setLevel(logging.WARNING)


@contextmanager
def _task_lock(folder: Path) -> Iterator[None]:
    """Wait for whoever works on this task, as a job of an earlier run that was killed may."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def local_processes(jobs: int) -> Iterator[Executor]:
    """Give an executor of `jobs` processes on this machine, spread over its GPUs.

    The processes live as long as the block, and load torch and the data once each.
    """
    context = multiprocessing.get_context("spawn")  # a fork would not survive torch's threads
    devices = context.SimpleQueue()
    for number in range(jobs):
        devices.put(_device_of(number))
    pool = ProcessPoolExecutor(
        max_workers=jobs, mp_context=context, initializer=_begin_worker, initargs=(devices,)
    )
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # they would write over each other; read when tqdm is imported
    try:
        yield pool
    except BaseException:  # an interrupt too: what is under way goes on from its last save
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        if bars is None:
            del os.environ["TQDM_DISABLE"]
        pool.shutdown(wait=True, cancel_futures=True)


def _device_of(number: int) -> str | None:
    """What CUDA shall show to a process; None where there are not several GPUs to spread over."""
    count = require("torch", "running recipes").cuda.device_count()
    if count < 2:
        return None
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = asked.split(",") if asked else [str(each) for each in range(count)]
    return names[number % len(names)]


def _begin_worker(devices: Any) -> None:
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def slurm_jobs(
    folder: Path, settings: Mapping[str, Any], *, cluster: str | None = None
) -> Executor:
    """Return an executor that makes every task a job of a Slurm cluster, by submitit.

    Args:
        folder: for logs and pickled calls; must be shared with the cluster.
        settings: `partition`, `time`, … as Slurm calls them, or those of submitit that hold for
            any cluster, such as `timeout_min`, `mem_gb`, `cpus_per_task` and `gpus_per_node`.
        cluster: "local" runs the jobs here; None finds Slurm.

    Raises:
        ToolchainError: submitit is not installed.
        UserInputError: there is no Slurm here, or a setting is not known.
    """
    submitit = require("submitit", "submitting jobs to Slurm", extra="slurm")
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    if cluster is None and executor.cluster != "slurm":
        raise UserInputError("--slurm: this machine has no srun; give --jobs N to run jobs on it")
    named = {name if name in GENERAL else f"slurm_{name}": v for name, v in settings.items()}
    try:
        executor.update_parameters(**named)
    except (NameError, TypeError, ValueError) as err:
        raise UserInputError(f"--slurm: {' '.join(str(err).split())}") from err
    return _Submitit(executor, submitit.core.utils.UncompletedJobError)


class _Submitit:
    """An executor of submitit, or a job of it, whose errors become ours."""

    def __init__(self, inner: Any, uncompleted: type[Exception]) -> None:
        self._inner, self._uncompleted = inner, uncompleted

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Job:
        return _Submitit(self._inner.submit(function, *arguments), self._uncompleted)

    def done(self) -> bool:
        return bool(self._inner.done())

    def result(self) -> Any:
        try:
            return self._inner.result()
        except self._uncompleted as err:  # killed, or an error that is not of ours
            raise CompressError(
                f"job {self._inner.job_id} failed; finished steps are kept, its log is "
                f"{self._inner.paths.stderr}"
            ) from err
