"""Watch a running dispatcher: exit rates and confidence, with an alarm when they drift."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Iterator, List, Optional, TextIO

from compress.cli import HelpFormatter, add_common_options, run_door
from compress.errors import AccuracyError, UserInputError
from compress.runtime.drift import DriftMonitor
from compress.runtime.manifest import Manifest, read_manifest
from compress.runtime.reference_rates import (
    DispatchLine,
    ReferenceRates,
    parse_line,
    read_reference,
)

__all__ = ["main"]

MAX_LINE = 1 << 20  # bytes
POLL_SECONDS = 0.2

EPILOG = """examples:
  python -m compress.dispatch digits.bundle camera --json | python -m compress.monitor digits.bundle
  python -m compress.monitor digits.bundle results.jsonl --follow --stop
  python -m compress.monitor digits.bundle results.jsonl --reference calibration.jsonl

The alarm tests at every image whether a rate lies outside what the calibration images allow, by
bets that stay valid however often one looks (Ville's inequality; see compress/runtime/drift.py).
Without drift, and with images that do not depend on one another, the probability of ever raising
an alarm is at most --false-alarm, however long the stream. The alarm goes to stderr; with --stop
it ends the watch with exit code 5. With --json every line is one object, the summary last
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.monitor",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder of the bundle that is dispatched")
    words = "what python -m compress.dispatch --json prints; - is standard input"
    add("stream", type=Path, nargs="?", default=Path("-"), metavar="STREAM", help=words)
    add("--follow", action="store_true", help="wait for more at the end of the file STREAM")
    words = "plan.json, or the dispatcher's JSON lines of the calibration images (the bundle's own)"
    add("--reference", type=Path, metavar="FILE", help=words)
    words = "largest probability of an alarm without drift, over the whole stream"
    add("--false-alarm", type=float, default=0.01, metavar="P", help=words)
    add("--every", type=int, default=1000, metavar="N", help="images from line to line")
    add("--window", type=int, default=1000, metavar="N", help="images that are shown as the last")
    add("--stop", action="store_true", help="end at the alarm, with exit code 5")
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> Optional[int]:
    if options.every < 1:
        raise UserInputError(f"--every is {options.every}; expected at least 1")
    manifest = read_manifest(options.bundle, check_files=False)
    if options.reference is None:
        reference = ReferenceRates.from_manifest(manifest)
    else:
        reference = read_reference(options.reference)
        reference.check_thresholds(manifest.thresholds, f"the bundle {options.bundle}")
    monitor = DriftMonitor(reference, false_alarm=options.false_alarm, window=options.window)
    watch = _Watch(monitor, manifest, options)
    try:
        watch.run(_lines(options.stream, options.follow))
    finally:  # also of an interrupted stream, and of one that turns out to be damaged
        if monitor.images or watch.errors:
            watch.show_summary()
    return AccuracyError.exit_code if options.stop and monitor.alarm else None


class _Watch:
    """Feeds lines to the monitor and shows what it says."""

    def __init__(
        self, monitor: DriftMonitor, manifest: Manifest, options: argparse.Namespace
    ) -> None:
        self.monitor, self.manifest, self.options = monitor, manifest, options
        self.places = [segment.at for segment in manifest.segments]
        self.errors = 0
        self.is_complete = False

    def run(self, lines: Iterator[bytes]) -> None:
        """Take lines until they end, the alarm stops them, or the summary ends a followed file."""
        number = 0
        for number, text in enumerate(lines, 1):
            try:
                line = parse_line(text)
            except ValueError as err:
                if not text.endswith(b"\n") and number > 1:
                    break  # the dispatcher was stopped while it wrote
                raise UserInputError(
                    f"line {number} of the stream cannot be used: {err}; expected what "
                    "python -m compress.dispatch --json prints"
                ) from err
            self._take(line, number)
            if self.monitor.alarm and self.options.stop:
                return
            if self.is_complete and self.options.follow:
                break
        if number == 0:
            raise UserInputError(
                "the stream is empty; expected what python -m compress.dispatch --json prints"
            )
        if not self.is_complete and not self.options.quiet:
            print("the stream ends before the dispatcher's summary", file=sys.stderr)

    def _take(self, line: DispatchLine, number: int) -> None:
        self.is_complete = line.thresholds is not None
        if line.thresholds is not None:
            self.monitor.reference.check_thresholds(line.thresholds, "the stream")
        elif line.exit_index is None:
            self.errors += 1
        else:
            self._check_exit(line, number)
            is_alarm = self.monitor.update(line.exit_index, line.confidence)
            if is_alarm:
                self._show_alarm()
            if self.monitor.images % self.options.every == 0:
                self._show_state()

    def _check_exit(self, line: DispatchLine, number: int) -> None:
        """Raise UserInputError for an exit that the bundle does not have."""
        index, at = line.exit_index, line.exit_at
        if index is not None and index < len(self.places):
            if at == self.places[index]:
                return
            other = f"exit {index} {_behind(at)}, which is {_behind(self.places[index])}"
        else:
            other = f"exit {index}, which ends at exit {len(self.places) - 1}"
        raise UserInputError(
            f"line {number} of the stream has {other} in the bundle {self.manifest.name}; expected "
            "the stream of the same bundle"
        )

    def _show_state(self) -> None:
        report = self.monitor.report()
        _show(json.dumps(report.to_dict()) if self.options.json else report.to_text(), sys.stdout)

    def _show_alarm(self) -> None:
        alarm = self.monitor.alarm
        if alarm is None:
            raise RuntimeError("an alarm was raised and is not there")
        _show(f"ALARM: {alarm.to_text()}", sys.stderr)

    def show_summary(self) -> None:
        """Show the last line."""
        report, alarm = self.monitor.report(), self.monitor.alarm
        if self.options.json:
            facts = {"errors": self.errors, "complete": self.is_complete}
            _show(json.dumps({"summary": {**report.to_dict(), **facts}}), sys.stdout)
            return
        found = "no drift found" if alarm is None else alarm.to_text()
        _show(f"{report.to_text()}\n{self.errors} with errors; {found}", sys.stdout)


def _behind(at: Optional[str]) -> str:
    return "at the final head" if at is None else f"behind {at:.60}"


def _show(text: str, where: TextIO) -> None:
    print(text, file=where, flush=True)


def _lines(stream: Path, follow: bool) -> Iterator[bytes]:
    """Yield lines as they come; the last may lack its end."""
    if str(stream) == "-":
        if follow:
            raise UserInputError("--follow was given without STREAM; expected a file that grows")
        if sys.stdin.isatty():
            raise UserInputError(
                "no stream was given; expected a file, or "
                "python -m compress.dispatch BUNDLE IMAGES --json | python -m compress.monitor ..."
            )
        yield from iter(lambda: _checked(sys.stdin.buffer.readline(MAX_LINE)), b"")
        return
    try:
        file = open(str(stream), "rb")  # noqa: SIM115  # the error is of opening, not of reading
    except OSError as err:
        raise UserInputError(
            f"stream {stream} cannot be opened ({err.strerror}); check the path"
        ) from err
    with file:
        part = b""
        while True:
            part = _checked(part + file.readline(MAX_LINE))
            if part.endswith(b"\n"):
                yield part
                part = b""
            elif follow:
                _wait(file.fileno(), file.tell(), stream)
            else:
                break
        if part:
            yield part


def _checked(line: bytes) -> bytes:
    if len(line) >= MAX_LINE:
        raise UserInputError(
            f"a line of the stream is longer than {MAX_LINE} bytes; expected what "
            "python -m compress.dispatch --json prints"
        )
    return line


def _wait(handle: int, read: int, stream: Path) -> None:
    """Wait for more of a file."""
    if os.fstat(handle).st_size < read:
        raise UserInputError(f"stream {stream} became shorter while it was followed; start again")
    time.sleep(POLL_SECONDS)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
