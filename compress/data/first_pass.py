"""Decode every image file of a data set once, on all processors: identity, damage and pixels.

The files are divided into runs, and every process takes the next run when it is done with one.
A few small files are decoded right here, which takes less time than starting a process.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import compress
from compress.data.decode_worker import Decoded, Run, Task, decode_runs
from compress.errors import ToolchainError, UserInputError
from compress.optional import require

__all__ = ["check_damage", "decode_files"]

RUN = 128  # files
WORTH_A_PROCESS = 1 << 23  # bytes of files, or …
FEW = 1000  # … files: what is below both is decoded in this process
MOST_PROCESSES = 8
NAMED = 5  # damaged images that a message names


def decode_files(paths: Sequence[Path], task: Task, *, total_bytes: int) -> list[Decoded]:
    """Return what is known of each file, in order; pixels go where the task says.

    Args:
        paths: absolute ones.
        task: what is done with every file.
        total_bytes: of all files, to decide whether processes are worth their start.

    Raises:
        ToolchainError: Pillow or tqdm is missing, or a process ended before its time.
    """
    names = [os.fspath(path) for path in paths]
    runs = [
        Run(first=first, paths=names[first : first + RUN]) for first in range(0, len(names), RUN)
    ]
    require("PIL.Image", "reading images")
    tqdm = require("tqdm", "progress bars").tqdm
    what = "checking images" if task.output is None else "decoding images"
    with tqdm(desc=what, total=len(names), delay=2, leave=False, unit="image") as bar:
        if (len(names) < FEW and total_bytes < WORTH_A_PROCESS) or not sys.executable:
            found = dict(enumerate(_told(decode_runs(task, runs), bar.update)))
        else:
            found = _in_processes(task, runs, bar.update)
    return [decoded for number in range(len(runs)) for decoded in found[number]]


def check_damage(paths: Sequence[Path], found: Sequence[Decoded]) -> None:
    """Raise UserInputError that names up to five damaged files and counts the rest."""
    damaged = [
        f"{path} ({decoded.damage})"
        for path, decoded in zip(paths, found, strict=True)
        if decoded.damage is not None
    ]
    if damaged:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise UserInputError(
            f"{len(damaged)} of {len(paths)} images cannot be decoded: "
            f"{', '.join(damaged[:NAMED])}{more}; replace them, or take them out of the folder"
        )


def _told(
    answers: Iterator[list[Decoded]], tell: Callable[[int], object]
) -> Iterator[list[Decoded]]:
    for answer in answers:
        tell(len(answer))
        yield answer


def _in_processes(
    task: Task, runs: Sequence[Run], tell: Callable[[int], object]
) -> dict[int, list[Decoded]]:
    """Give runs to processes as they ask for them; return the answer of each run by its number."""
    waiting = iter(enumerate(runs))
    found: dict[int, list[Decoded]] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def serve(_number: int) -> None:
        with _worker(task) as ask:
            while not stop.is_set():
                with lock:
                    number, run = next(waiting, (-1, None))
                if run is None:
                    return
                found[number] = ask(run)
                with lock:
                    tell(len(run.paths))

    count = min(_processors(), MOST_PROCESSES, len(runs))
    with ThreadPoolExecutor(max_workers=count, thread_name_prefix="decoding") as pool:
        try:
            list(pool.map(serve, range(count)))
        finally:
            stop.set()  # an interrupt, too, ends every process after its run
    return found


@contextmanager
def _worker(task: Task) -> Iterator[Callable[[Run], list[Decoded]]]:
    """Start a process; give a function that sends it a run and waits for the answer."""
    place = Path(compress.__file__).parents[1]
    command = [sys.executable, "-m", "compress.data.decode_worker"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        cwd=place,  # where -m looks first
        env={**os.environ, "PYTHONPATH": _search_path(), "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # an interrupt from the keyboard is for the main process
    ) as process:
        assert process.stdin is not None  # both were asked for
        assert process.stdout is not None
        reader, writer = process.stdout, process.stdin

        def ask(run: Run) -> list[Decoded]:
            try:
                _send(run)
                answer = reader.readline()
            except OSError:
                answer = ""
            if not answer.endswith("\n"):
                raise ToolchainError(
                    f"a process that decodes images ended early (exit code {process.wait()}) at "
                    f"{run.paths[0]} or the {len(run.paths) - 1} files after it; its message "
                    "stands above, and without one the memory was full"
                )
            return [_decoded(values) for values in json.loads(answer)]

        def _send(what: Task | Run) -> None:
            writer.write(json.dumps(vars(what)) + "\n")
            writer.flush()

        try:
            _send(task)
            yield ask
        finally:
            writer.close()


def _decoded(values: dict[str, object]) -> Decoded:
    return Decoded(**{**values, "size": tuple(values["size"])})  # type: ignore[arg-type]


def _search_path() -> str:
    return os.pathsep.join(os.path.abspath(place) for place in sys.path)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
