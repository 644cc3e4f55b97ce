"""A process that reads mutated inputs one by one, and tells what each did.

The process is forked, so that nothing is imported again. It limits its own memory, notes what is
opened for writing and which commands are run (audit hooks see both), and writes a line before and
after each case, so that the parent knows which case hung or crashed.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from compress.errors import CompressError
from tools.fuzzing.kind import Kind

__all__ = ["HARMLESS", "OUTCOMES", "case_of", "work"]

HARMLESS = ("refused", "accepted")
OUTCOMES = (*HARMLESS, "traceback", "hang", "crash", "code", "outside", "memory")
ADDRESS_ROOM = 6 << 30  # bytes above what is mapped; what asks for more gets a MemoryError
FILE_ROOM = 1 << 30  # bytes of one written file
COMMANDS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.spawn")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
CANARY = "canary"


class _Watch:
    """What the audit hook has seen since the case began."""

    def __init__(self, case: Path) -> None:
        self.case = str(case)
        self.on = False
        self.code: list[str] = []
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in COMMANDS:
            self.code.append(f"{event} {arguments[:1]!r}"[:200])
        elif event in CHANGES:
            self._changed(event, arguments[0])
        elif event == "open":
            path, mode, flags = arguments
            writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
            opened = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or opened:
                self._changed("open", path)

    def _changed(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        whole = os.path.abspath(os.fsdecode(path))
        if not whole.startswith((self.case, "/dev/null")) and "__pycache__" not in whole:
            self.outside.append(f"{event} {whole}"[:200])


def case_of(kinds: Sequence[Kind], seed: int, number: int) -> tuple[Kind, random.Random]:
    """Return the kind of a case and the generator of all that is drawn for it."""
    rng = random.Random(f"{seed}:{number}")
    return kinds[number % len(kinds)], rng


def work(
    kinds: Sequence[Kind],
    numbers: Iterable[int],
    *,
    seed: int,
    folder: Path,
    report: TextIO,
    memory: int,
) -> None:
    """Read the cases `numbers`, and write what happened as lines of JSON.

    Args:
        kinds: what can be read.
        numbers: of the cases.
        seed: of the run.
        folder: of this process alone.
        report: gets `{"begin": n}`, then `{"end": n, "outcome": …, "detail": …}`.
        memory: bytes by which the peak may grow.
    """
    case = folder / "case"
    _limit()
    _silence(folder / "output")
    watch = _Watch(case)
    for number in numbers:
        kind, rng = case_of(kinds, seed, number)
        _prepare(case, kind, rng)
        print(json.dumps({"begin": number}), file=report, flush=True)
        outcome, detail = _watched(kind, case, watch, memory)
        line = {"end": number, "outcome": outcome, "detail": detail, "kind": kind.name}
        print(json.dumps(line), file=report, flush=True)


def _prepare(case: Path, kind: Kind, rng: random.Random) -> None:
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(rng.choice(kind.seeds), case)
    os.chdir(case)
    kind.mutate(rng, case)


def _watched(kind: Kind, case: Path, watch: _Watch, memory: int) -> tuple[str, str]:
    before = _reset_peak()
    watch.code.clear()
    watch.outside.clear()
    watch.on = True
    try:
        outcome, detail = _read(kind, case)
    finally:
        watch.on = False
    if watch.code or (case / CANARY).exists():
        return "code", "; ".join(watch.code) or "the canary is there"
    if watch.outside:
        return "outside", "; ".join(watch.outside)
    grown = _peak() - before
    if grown > memory:
        return "memory", f"{grown >> 20} MiB; {outcome}: {detail}"
    return outcome, detail


def _read(kind: Kind, case: Path) -> tuple[str, str]:
    try:
        code = kind.read(case)
    except CompressError as err:
        return "refused", str(err)[:300]
    except SystemExit as err:
        return "refused", f"exit code {err.code}"
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    return ("refused", f"exit code {code}") if code else ("accepted", "")


def _limit() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _silence(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


def _reset_peak() -> int:
    """Set the peak of the resident memory back to what is resident now; return that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0
