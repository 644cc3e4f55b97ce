"""Run a bundle on its probe: how far is what runs here from what was exported?

Every segment runs on every image of the probe, as a chain, so an error is what a device would see;
then the dispatcher runs, so that leaving and compaction are tested too. numpy alone.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from compress.errors import AccuracyError
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import Manifest
from compress.runtime.probe import Probe

__all__ = ["SegmentTest", "SelfTest", "self_test"]

SCHEMA = "compress.self_test/1"
# Largest relative error of a result, and difference of a gate's probability. On a GPU, products in
# float32 may be of TF32, ten bits; int8 may round the other way in every layer.
TOLERANCES = {"fp32": (1e-2, 0.02), "fp16": (5e-2, 0.05), "int8": (0.25, 0.15)}
ORDER = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class SegmentTest:
    """How far one segment is, run in the chain.

    Attributes:
        file: its ONNX file.
        precision: the coarsest up to here, which sets what is allowed.
        error: |here - exported| / |exported| in the 2-norm, of its worst result and image; of whole
            numbers the share that differs. None where the result is not finite.
        gate_error: largest difference of the gate's probability; None without a gate, and where it
            is not a number.
        tolerance: that `error` may reach.
        gate_tolerance: that `gate_error` may reach.
        passed: whether both are within that.
    """

    file: str
    precision: str
    error: Optional[float]
    gate_error: Optional[float]
    tolerance: float
    gate_tolerance: float
    passed: bool

    def fault(self) -> str:
        """Return in words what is beyond its tolerance."""
        if self.error is None or self.error > self.tolerance:
            return f"{self.file} is off by {_told(self.error)}, at most {self.tolerance:g} relative"
        gate = _told(self.gate_error)
        return f"the gate of {self.file} is off by {gate}, at most {self.gate_tolerance:g}"


@dataclass(frozen=True)
class SelfTest:
    """How far a bundle is from its probe.

    Attributes:
        backend: what ran it.
        images: of the probe.
        segments: in the order of the network.
        exits: where each image left.
        wrong_exits: images that left elsewhere than their gates say, those aside whose gate lies so
            near to its threshold that the tolerance may decide.
        wrong_logits: images whose logits, where they left, are beyond the tolerance.
    """

    backend: str
    images: int
    segments: Tuple[SegmentTest, ...]
    exits: Tuple[int, ...]
    wrong_exits: int
    wrong_logits: int

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        segments = all(segment.passed for segment in self.segments)
        return segments and not self.wrong_exits and not self.wrong_logits

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "segments": [asdict(segment) for segment in self.segments],
            "exits": list(self.exits),
            "passed": self.passed,
        }

    def to_text(self) -> str:
        """Return the figures for a console."""
        lines = [f"self-test on {self.backend}, {self.images} images of the probe"]
        for each in self.segments:
            gate = "" if each.gate_tolerance == 0 else f", gate off by {_told(each.gate_error)}"
            gate += f" of {each.gate_tolerance:g}" if gate else ""
            mark = "ok" if each.passed else "BEYOND"
            lines.append(
                f"{each.file:18} {each.precision:5} error {_told(each.error)} of "
                f"{each.tolerance:g}{gate}  {mark}"
            )
        lines.append(f"exits  {self.images - self.wrong_exits} of {self.images} as exported")
        return "\n".join(lines)

    def check(self, bundle: Path) -> None:
        """Raise AccuracyError, with the first segment that is too far, unless the test passed."""
        if self.passed:
            return
        beyond = next((each.fault() for each in self.segments if not each.passed), None)
        count = self.wrong_exits + self.wrong_logits
        what = beyond or f"{count} images leave elsewhere, or with other logits"
        raise AccuracyError(
            f"bundle {bundle} on {self.backend} computes something else than was exported "
            f"({what}, on the {self.images} images of its probe); export it with --precision fp32, "
            "or for the TensorRT of this device (--target), and build its engines again"
        )


def self_test(dispatcher: Dispatcher, probe: Probe) -> SelfTest:
    """Run a bundle on its probe.

    Args:
        dispatcher: of the bundle, on any backend.
        probe: of the same bundle.

    Raises:
        ToolchainError: the backend failed.
    """
    manifest = dispatcher.manifest
    found = _chain(dispatcher, probe)
    segments = tuple(
        _compared(manifest, number, found[number], probe.results[number])
        for number in range(len(manifest.segments))
    )
    done = dispatcher.run(probe.images)
    expected = probe.exits(manifest.thresholds)
    wrong = (done.exits != expected) & ~_near(probe, segments, manifest.thresholds)
    return SelfTest(
        backend=dispatcher.backend.name,
        images=len(probe.images),
        segments=segments,
        exits=tuple(int(each) for each in done.exits),
        wrong_exits=int(wrong.sum()),
        wrong_logits=_wrong_logits(done.logits, done.exits, probe, segments),
    )


def _chain(dispatcher: Dispatcher, probe: Probe) -> List[Dict[str, np.ndarray]]:
    """Run every segment on every image; return of each its results by name."""
    backend, manifest = dispatcher.backend, dispatcher.manifest
    parts: List[Dict[str, List[np.ndarray]]] = [{} for _ in manifest.segments]
    step = min(backend.max_batch, len(probe.images))
    for start in range(0, len(probe.images), step):
        backend.load(probe.images[start : start + step])
        for number, part in enumerate(parts):
            gates = backend.run(number)
            given = {} if gates is None else {"gate": gates}
            if manifest.classes:
                given["logits"] = backend.logits()
            if gates is None:
                given.update(backend.outputs())
            for name, values in given.items():
                part.setdefault(name, []).append(np.array(values))
    return [{name: np.concatenate(arrays) for name, arrays in part.items()} for part in parts]


def _compared(
    manifest: Manifest,
    number: int,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
) -> SegmentTest:
    segments = manifest.segments[: number + 1]
    precision = max((segment.precision for segment in segments), key=ORDER.index)
    tolerance, gate_tolerance = TOLERANCES[precision]
    errors = [_errors(found[name], expected[name]) for name in expected if name != "gate"]
    error = float(np.max([part.max() for part in errors]))
    gate_error = 0.0
    if "gate" in expected:
        gate_error = float(np.abs(found["gate"] - expected["gate"]).max())
    return SegmentTest(
        file=segments[-1].file,
        precision=precision,
        error=error if np.isfinite(error) else None,
        gate_error=gate_error if "gate" in expected and np.isfinite(gate_error) else None,
        tolerance=tolerance,
        gate_tolerance=gate_tolerance if "gate" in expected else 0.0,
        passed=error <= tolerance and gate_error <= gate_tolerance,  # neither of NaN
    )


def _errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the relative error (N,) of each image, NaN where what was found is none."""
    rows = len(expected)
    if expected.dtype.kind != "f":
        share: np.ndarray = (found != expected).reshape(rows, -1).mean(axis=1)
        return share
    wanted = expected.reshape(rows, -1).astype(np.float64)
    difference = np.linalg.norm(found.reshape(rows, -1).astype(np.float64) - wanted, axis=1)
    scale = np.linalg.norm(wanted, axis=1)
    errors: np.ndarray = difference / np.where(scale > 0, scale, 1)
    return errors


def _near(probe: Probe, segments: Sequence[SegmentTest], bars: Sequence[float]) -> np.ndarray:
    """Return which images (N,) have a gate that the tolerance may move across its threshold."""
    allowed = np.array([segment.gate_tolerance for segment in segments[:-1]])
    distances = np.abs(probe.gates.astype(np.float64) - np.array(bars, dtype=np.float64))
    is_near: np.ndarray = np.any(distances <= allowed, axis=1)
    return is_near


def _wrong_logits(
    logits: np.ndarray, exits: np.ndarray, probe: Probe, segments: Sequence[SegmentTest]
) -> int:
    """Count images that bring other logits from where they left than the chain would give."""
    wrong = 0
    for place, exit_index in enumerate(exits.tolist()):
        expected = probe.results[exit_index].get("logits")
        if expected is None:  # of a network that is no classifier
            continue
        rows = slice(place, place + 1)
        error = _errors(logits[rows], expected[rows])[0]
        wrong += not error <= segments[exit_index].tolerance
    return wrong


def _told(error: Optional[float]) -> str:
    return "nan" if error is None else f"{error:.1e}"
