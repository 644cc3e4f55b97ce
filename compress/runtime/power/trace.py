"""Recorded readings: written while something was measured, replayed later as if they came now.

JSON lines. The first says what the sensor is, `{"phase": "active"}` starts a phase, and the others
are readings, seconds and per rail milliwatts ("mw"), or millijoules of a counter ("mj"):

    {"format": "compress.power_trace/1", "source": "jetson-ina3221", "kind": "power",
     "rails": ["VDD_IN"], "total_of": ["VDD_IN"], "state": {}}
    {"phase": "idle"}
    {"t_s": 0.0, "mw": {"VDD_IN": 8000.0}}

A replay gives the same energy to the last digit, on any machine.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from compress.errors import UserInputError
from compress.files import check_readable, write_text
from compress.runtime.power.sampling import KINDS, PowerSource, Recording, Sample

__all__ = ["Phase", "Trace", "TraceSource", "read_trace", "write_trace"]

FORMAT = "compress.power_trace/1"
UNITS = {"power": "mw", "energy": "mj"}
MAX_BYTES = 256 << 20  # days of readings
LARGEST = 1e15  # mW or mJ, far beyond every machine


@dataclass(frozen=True)
class Phase:
    """Readings from one start to one stop.

    Attributes:
        label: "idle" or "active".
        samples: in order of time.
    """

    label: str
    samples: Tuple[Sample, ...]


@dataclass(frozen=True)
class Trace:
    """What a sensor gave.

    Attributes:
        source: its name.
        kind: "power" or "energy".
        rails: their names.
        total_of: the rails that make up the total.
        phases: in the order in which they were recorded.
        state: power mode and clocks at the time.
    """

    source: str
    kind: str
    rails: Tuple[str, ...]
    total_of: Tuple[str, ...]
    phases: Tuple[Phase, ...]
    state: Mapping[str, Any] = field(default_factory=dict)


class TraceSource(PowerSource):
    """A trace in the place of a sensor: every recording is the next phase of that label."""

    def __init__(self, trace: Trace) -> None:
        self.name = trace.source
        self.kind = trace.kind
        self.rails = trace.rails
        self.total_of = trace.total_of
        self.state = trace.state
        self._waiting = list(trace.phases)

    def read(self) -> Dict[str, float]:
        """Return the first reading of the next phase.

        Raises:
            UserInputError: the trace is at its end.
        """
        if not self._waiting:
            raise UserInputError(
                "the power trace is at its end; expected one more phase, so record it anew"
            )
        return dict(self._waiting[0].samples[0].values)

    def record(self, phase: str, rate_hz: float) -> Recording:
        """Give the next phase of this label; the rate is that of the trace.

        Raises:
            UserInputError: no such phase is left.
        """
        for i, each in enumerate(self._waiting):
            if each.label == phase:
                del self._waiting[: i + 1]
                return _Replay(each.samples)
        raise UserInputError(
            f"the power trace has no further phase {phase!r}; expected one for every measurement, "
            "so record it anew with as many"
        )


class _Replay(Recording):
    """A recording that was made before."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)

    def wait(self, seconds: float) -> None:
        """Return at once: the time has passed already."""

    def stop(self) -> List[Sample]:
        """Return the readings of the phase."""
        return self._samples


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace as JSON lines, whole or not at all."""
    head = {
        "format": FORMAT,
        "source": trace.source,
        "kind": trace.kind,
        "rails": list(trace.rails),
        "total_of": list(trace.total_of),
        "state": dict(trace.state),
    }
    unit = UNITS[trace.kind]
    lines: List[Dict[str, Any]] = [head]
    for phase in trace.phases:
        lines.append({"phase": phase.label})
        lines += [{"t_s": sample.t_s, unit: dict(sample.values)} for sample in phase.samples]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_trace(path: Path) -> Trace:
    """Read what `write_trace` wrote, or what was recorded elsewhere in the same form.

    Readings before the first phase belong to the phase "active".

    Raises:
        UserInputError: it is no trace, or a line of it cannot be used.
    """
    path = check_readable(path, "power trace")
    if path.stat().st_size > MAX_BYTES:
        raise UserInputError(
            f"power trace {path} has {path.stat().st_size} bytes; expected at most {MAX_BYTES}"
        )
    reader: Optional[_Reader] = None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        reader = _Reader(_object(lines[0]))
        for line in lines[1:]:
            reader.take(line)
        return reader.trace()
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, IndexError) as err:
        reason = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        where = f"line {reader.line if reader else 1}"
        raise UserInputError(
            f"power trace {path} cannot be used, {where} ({reason}); expected JSON lines of the "
            f"format {FORMAT}"
        ) from err


class _Reader:
    """Builds a trace line by line; ValueError, KeyError and TypeError mean a bad line."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        if head["format"] != FORMAT:
            raise ValueError(f"format {head['format']!r:.60}")
        if head["kind"] not in KINDS:
            raise ValueError(f"kind {head['kind']!r:.60}")
        self._rails = _names(head["rails"])
        total_of = _names(head["total_of"])
        if not set(total_of) <= set(self._rails):
            raise ValueError("the total is of rails that the trace does not have")
        if not isinstance(head["source"], str) or not isinstance(head.get("state", {}), dict):
            raise ValueError("source or state is of another type")
        self._head = (head["source"], head["kind"], self._rails, total_of)
        self._state: Mapping[str, Any] = head.get("state", {})
        self._unit = UNITS[head["kind"]]
        self._phases: List[Tuple[str, List[Sample]]] = []
        self.line = 2  # the one that comes next

    def take(self, line: str) -> None:
        if line.strip():
            self._take(_object(line))
        self.line += 1

    def _take(self, line: Mapping[str, Any]) -> None:
        if "phase" in line:
            if not isinstance(line["phase"], str):
                raise ValueError(f"phase {line['phase']!r:.60}")
            self._phases.append((line["phase"], []))
            return
        if not self._phases:
            self._phases.append(("active", []))
        samples = self._phases[-1][1]
        samples.append(self._sample(line, samples[-1] if samples else None))

    def trace(self) -> Trace:
        for label, samples in self._phases:
            if len(samples) < 2:
                raise ValueError(f"the phase {label!r} has {len(samples)} readings, not two")
        phases = tuple(Phase(label, tuple(samples)) for label, samples in self._phases)
        if not phases:
            raise ValueError("there is no reading")
        return Trace(*self._head, phases, self._state)

    def _sample(self, line: Mapping[str, Any], before: Optional[Sample]) -> Sample:
        time_s, values = _number(line["t_s"]), line[self._unit]
        if not isinstance(values, dict) or set(values) != set(self._rails):
            raise ValueError("the rails are not those of the first line")
        numbers = {rail: _number(values[rail]) for rail in self._rails}
        if before is None:
            return Sample(time_s, numbers)
        if not time_s > before.t_s:
            raise ValueError(f"time goes from {before.t_s} to {time_s}")
        if self._unit == "mj" and any(numbers[r] < before.values[r] for r in self._rails):
            raise ValueError("a counter of energy goes back")
        return Sample(time_s, numbers)


def _object(line: str) -> Dict[str, Any]:
    value = json.loads(line, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} in place of an object")
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _names(value: Any) -> Tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(n, str) for n in value):
        raise ValueError(f"{value!r:.60} in place of names of rails")
    if len(set(value)) < len(value):
        raise ValueError("a rail is named twice")
    return tuple(value)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{value!r:.60} in place of a number")
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{value} is out of range")
    return float(value)
