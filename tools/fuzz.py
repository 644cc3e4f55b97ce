"""Feed the toolkit thousands of damaged and hostile files, and count what it does with them.

    python tools/fuzz.py --cases 2000 [--seed 0] [--kinds checkpoint onnx …] [--case N] [--keep DIR]

Every file that a command reads is a kind: checkpoints, safetensors, manifests, ONNX files, lists of
engines, the monitor's lines, plans, replay tables, device profiles, recipes, pictures, archives.
A case is a good input, mutated by a generator that the seed and the number of the case decide, so
`--case N` repeats one alone and shows what it does. Only clean refusals and acceptances are good;
tracebacks, hangs, crashes, code that ran, files written outside of the case and memory beyond the
bound end the command with exit code 1.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.fuzzing.kind import Kind  # noqa: E402  # the folder that holds tools must be found first
from tools.fuzzing.worker import HARMLESS, OUTCOMES, case_of, work  # noqa: E402

__all__ = ["Counts", "Limits", "fuzz", "main"]

SHOWN = 3  # examples of each kind of harm
CRASH_WAIT = 1.0  # seconds between the end of a pipe and that of its process
TICK = 0.5  # seconds between looks at the clock


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a case may take.

    Attributes:
        seconds: of the clock, most of them computing; a machine that is busy gives three times
            as many.
        memory: bytes by which the peak of the process may grow.
    """

    seconds: float = 20.0
    memory: int = 2 << 30


@dataclass
class Counts:
    """What came of the cases.

    Attributes:
        outcomes: number of each outcome for each kind.
        harmful: (number, kind, outcome, detail) of the cases that are not good.
    """

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    harmful: list[tuple[int, str, str, str]] = field(default_factory=list)

    def add(self, number: int, kind: str, outcome: str, detail: str) -> None:
        """Count one case."""
        self.outcomes[kind][outcome] += 1
        if outcome not in HARMLESS:
            self.harmful.append((number, kind, outcome, detail))

    def to_text(self) -> str:
        """Return a table, a line for each kind, and the sum."""
        total = sum(self.outcomes.values(), Counter())
        rows: list[tuple[str, ...]] = [("kind", *OUTCOMES)]
        for name, counts in [*sorted(self.outcomes.items()), ("all", total)]:
            rows.append((name, *(str(counts[outcome]) for outcome in OUTCOMES)))
        return "\n".join(f"{r[0]:12}" + "".join(f"{cell:>11}" for cell in r[1:]) for r in rows)


class _Process:
    """One forked worker, and the case that it reads."""

    def __init__(
        self, kinds: Sequence[Kind], numbers: list[int], seed: int, folder: Path, limits: Limits
    ) -> None:
        self.numbers, self.folder = numbers, folder
        self.current: int | None = None
        self.began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        context = multiprocessing.get_context("fork")
        arguments = (kinds, numbers, seed, folder, (read, write), limits.memory)
        self.process = context.Process(target=_child, args=arguments)
        self.process.start()
        os.close(write)
        self.pipe = os.fdopen(read, "rb", buffering=0)
        self._rest = b""
        self._cpu = self._cpu_seconds()

    def lines(self) -> list[dict[str, object]] | None:
        """Return what it has told, or None at its end."""
        content = self.pipe.read(1 << 16)
        if not content:
            return None
        *whole, self._rest = (self._rest + content).split(b"\n")
        return [json.loads(line) for line in whole]

    def begin(self, number: int) -> None:
        """Note the case that it reads now."""
        self.current, self.began, self._cpu = number, time.monotonic(), self._cpu_seconds()

    def hangs(self, limits: Limits) -> bool:
        """Whether its case takes too long; others that use the machine do not count."""
        taken = time.monotonic() - self.began
        computed = self._cpu_seconds() - self._cpu
        busy = computed > limits.seconds / 2 or taken > 3 * limits.seconds
        return self.current is not None and taken > limits.seconds and busy

    def stop(self) -> int:
        """End it, and return its exit code; negative for a signal."""
        self.process.join(CRASH_WAIT)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        return self.process.exitcode or 0

    def left(self) -> list[int]:
        """Return the numbers behind the case that it was reading."""
        if self.current is None:
            return []
        return self.numbers[self.numbers.index(self.current) + 1 :]

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(
    kinds: Sequence[Kind],
    numbers: Sequence[int],
    *,
    seed: int = 0,
    workers: int = 2,
    folder: Path,
    limits: Limits | None = None,
) -> Counts:
    """Read mutated inputs in processes of their own, and count what came of them.

    Args:
        kinds: case `n` is of kind `n % len(kinds)`.
        numbers: of the cases.
        seed: of what is drawn.
        workers: processes at a time.
        folder: for the files of the cases.
        limits: of each case.
    """
    limits, counts, made = limits or Limits(), Counts(), 0
    pending = [part for i in range(workers) if (part := list(numbers[i::workers]))]
    with selectors.DefaultSelector() as selector:
        while pending or selector.get_map():
            while pending and len(selector.get_map()) < workers:
                part = pending.pop()
                process = _Process(kinds, part, seed, folder / f"worker_{made}", limits)
                selector.register(process.pipe, selectors.EVENT_READ, process)
                made += 1
            ready = {key.fileobj for key, _ in selector.select(TICK)}
            for key in list(selector.get_map().values()):
                process = key.data
                ended = key.fileobj in ready and not _taken(process, counts)
                hangs = not ended and process.hangs(limits)
                if ended or hangs:
                    selector.unregister(process.pipe)
                    pending += _buried(process, kinds, seed, counts, hangs=hangs)
    return counts


def _taken(process: _Process, counts: Counts) -> bool:
    """Take the lines of a process; False at its end."""
    lines = process.lines()
    for line in lines or ():
        if "begin" in line:
            process.begin(int(str(line["begin"])))
        else:
            words = (str(line[key]) for key in ("kind", "outcome", "detail"))
            counts.add(int(str(line["end"])), *words)
            process.current = None
    return lines is not None


def _buried(
    process: _Process, kinds: Sequence[Kind], seed: int, counts: Counts, *, hangs: bool
) -> list[list[int]]:
    """Count the case that ended a process, and return the cases that are left of it."""
    number, left = process.current, process.left()
    if hangs:
        process.process.kill()
    code = process.stop()
    if number is not None:
        kind = case_of(kinds, seed, number)[0].name
        counts.add(number, kind, *(("hang", "killed") if hangs else ("crash", f"exit code {code}")))
    elif code:
        output = (process.folder / "output").read_text(errors="replace")
        raise RuntimeError(f"a mutation failed (exit code {code}): {output[-3000:]}")
    return [left] if left else []


def _child(
    kinds: Sequence[Kind],
    numbers: list[int],
    seed: int,
    folder: Path,
    pipe: tuple[int, int],
    memory: int,
) -> None:
    os.close(pipe[0])
    with os.fdopen(pipe[1], "w") as report:
        work(kinds, numbers, seed=seed, folder=folder, report=report, memory=memory)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries are loaded: threads do not fork
    folder = Path(tempfile.mkdtemp(prefix="fuzz."))
    try:
        began = time.monotonic()
        kinds = _chosen_kinds(folder, options.kinds)
        print(f"seeds of {len(kinds)} kinds made in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        numbers = range(options.cases) if options.case is None else [options.case]
        limits = Limits(seconds=options.seconds)
        counts = fuzz(
            kinds, numbers, seed=options.seed, workers=options.workers, folder=folder, limits=limits
        )
        _show(counts, options, time.monotonic() - began)
        if options.keep:
            shutil.copytree(folder, options.keep, dirs_exist_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if counts.harmful else 0


def _chosen_kinds(folder: Path, names: Sequence[str]) -> list[Kind]:
    import torch

    from tools.fuzzing.seeds import kind_names, make_kinds

    torch.set_num_threads(1)
    logging.getLogger("compress").setLevel(logging.ERROR)  # notes of good inputs
    known = kind_names()
    for name in names:
        if name not in known:
            raise SystemExit(f"--kinds {name} is not known; expected some of {', '.join(known)}")
    kinds = make_kinds(folder / "seeds", [name for name in known if not names or name in names])
    for kind in kinds:
        _check_seeds(kind)
    return kinds


def _check_seeds(kind: Kind) -> None:
    """Read the good inputs once: they must be good, and libraries load what they load late."""
    for seed in kind.seeds:
        code = None
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(*kind.refusals),
        ):
            code = kind.read(seed)
        if code:
            raise RuntimeError(f"the good {kind.name} in {seed} ends with {code}")


def _show(counts: Counts, options: argparse.Namespace, seconds: float) -> None:
    print(counts.to_text())
    print(f"{len(counts.harmful)} harmful cases; {seconds:.0f} s, seed {options.seed}")
    shown: Counter[tuple[str, str]] = Counter()
    for number, kind, outcome, detail in sorted(counts.harmful):
        shown[kind, outcome] += 1
        if shown[kind, outcome] <= SHOWN or options.verbose:
            print(f"\ncase {number}: {kind}: {outcome}\n{detail}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/fuzz.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cases", type=int, default=2000, metavar="N", help="inputs that are tried (2000)")
    add("--seed", type=int, default=0, metavar="SEED", help="of what is drawn (0)")
    add("--kinds", nargs="+", default=[], metavar="KIND", help="only these (all)")
    add("--case", type=int, metavar="N", help="this one alone, of the same kinds")
    add("--workers", type=int, default=2, metavar="N", help="processes (2)")
    add("--seconds", type=float, default=20.0, metavar="S", help="that a case may take (20)")
    add("--keep", type=Path, metavar="DIR", help="copy the files of the last cases here")
    add("-v", "--verbose", action="store_true", help="show every harmful case")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
