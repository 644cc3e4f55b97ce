"""Decode every image file of a data set once, on all processors: identity, damage and pixels.

The files are divided into runs, and every process takes the next run when it is done with one.
A few small files are decoded right here, which takes less time than starting a process.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

import compress
from compress.data.decode_worker import Decoded, Run, Task, decode_runs
from compress.errors import ToolchainError, UserInputError
from compress.optional import require

__all__ = ["Findings", "check_damage", "decode_files"]

RUN = 128  # files
WORTH_A_PROCESS = 1 << 23  # bytes of files, or …
FEW = 1000  # … files: what is below both is decoded in this process
MOST_PROCESSES = 8
NAMED = 5  # damaged images that a message names


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of N files after they were decoded.

    Attributes:
        sha256: (N, 32) uint8, of each file.
        crcs: (N,) uint32, of the prepared pixels; 0 where none were asked for.
        sizes: (N, 2) int64, width and height as the files have them.
        damage: what is wrong with a file, by its place.
    """

    sha256: NDArray[np.uint8]
    crcs: NDArray[np.uint32]
    sizes: NDArray[np.int64]
    damage: dict[int, str]

    def add(self, run: Run, answers: Sequence[Decoded]) -> None:
        """Take in what was found in one run of files."""
        for place, decoded in enumerate(answers, start=run.first):
            if decoded.damage is not None:
                self.damage[place] = decoded.damage
                continue
            self.sha256[place] = np.frombuffer(bytes.fromhex(decoded.sha256), dtype=np.uint8)
            self.crcs[place] = decoded.crc
            self.sizes[place] = decoded.size


def decode_files(paths: Sequence[str], task: Task, *, total_bytes: int) -> Findings:
    """Return what is known of each file, in order; pixels go where the task says.

    Args:
        paths: absolute ones.
        task: what is done with every file.
        total_bytes: of all files, to decide whether processes are worth their start.

    Raises:
        ToolchainError: Pillow or tqdm is missing, or a process ended before its time.
    """
    starts = range(0, len(paths), RUN)
    runs = [Run(first=first, paths=paths[first : first + RUN]) for first in starts]
    found = Findings(
        sha256=np.zeros((len(paths), 32), dtype=np.uint8),
        crcs=np.zeros(len(paths), dtype=np.uint32),
        sizes=np.zeros((len(paths), 2), dtype=np.int64),
        damage={},
    )
    require("PIL.Image", "reading images")
    tqdm = require("tqdm", "progress bars").tqdm
    what = "checking images" if task.output is None else "decoding images"
    with tqdm(desc=what, total=len(paths), delay=2, leave=False, unit="image") as bar:
        few = len(paths) < FEW and total_bytes < WORTH_A_PROCESS
        answers = _here(task, runs) if few or not sys.executable else _in_processes(task, runs)
        with closing(answers):
            for run, answer in answers:
                found.add(run, answer)
                bar.update(len(answer))
    return found


def check_damage(paths: Sequence[str], found: Findings) -> None:
    """Raise UserInputError that names up to five damaged files and counts the rest."""
    if not found.damage:
        return
    named = [f"{paths[place]} ({found.damage[place]})" for place in sorted(found.damage)[:NAMED]]
    more = f" and {len(found.damage) - NAMED} more" if len(found.damage) > NAMED else ""
    raise UserInputError(
        f"{len(found.damage)} of {len(paths)} images cannot be decoded: {', '.join(named)}{more}; "
        "replace them, or take them out of the folder"
    )


Answers = Generator[tuple[Run, list[Decoded]], None, None]


def _here(task: Task, runs: Sequence[Run]) -> Answers:
    yield from zip(runs, decode_runs(task, runs), strict=True)


def _in_processes(task: Task, runs: Sequence[Run]) -> Answers:
    """Give runs to processes as they ask for them; yield the answers as they come."""
    count = min(_processors(), MOST_PROCESSES, len(runs))
    waiting = SimpleQueue[Run | None]()
    for run in (*runs, *[None] * count):
        waiting.put(run)
    done = SimpleQueue[tuple[Run, list[Decoded]] | BaseException]()
    stop = threading.Event()

    def serve() -> None:
        try:
            with _worker(task) as ask:
                while (run := waiting.get()) is not None and not stop.is_set():
                    done.put((run, ask(run)))
        except BaseException as err:  # raised again by who waits for the answers
            done.put(err)

    with ThreadPoolExecutor(max_workers=count, thread_name_prefix="decoding") as pool:
        for _ in range(count):
            pool.submit(serve)
        try:
            for _ in runs:
                answer = done.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            stop.set()  # an interrupt, too, ends every process after its run


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
            with contextlib.suppress(OSError):  # a process that is gone is told of at the first run
                _send(task)
            yield ask
        finally:
            with contextlib.suppress(OSError):
                writer.close()


def _decoded(values: dict[str, object]) -> Decoded:
    return Decoded(**{**values, "size": tuple(values["size"])})  # type: ignore[arg-type]


def _search_path() -> str:
    return os.pathsep.join(os.path.abspath(place) for place in sys.path)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
