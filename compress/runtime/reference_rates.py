"""What a bundle did on its calibration images: how many left at each exit, and how sure it was.

This is what a running dispatcher is compared with. The manifest holds it as the note "calibration",
whose fields are those of `ReferenceRates.to_dict`; it can also be read from a plan, which knows
exit rates alone, or be counted from the JSON lines that the dispatcher printed for the calibration
images. The lines themselves are read here too, because a stream that is watched has the same.

Confidences are counted between edges that are fixed beforehand: edges that were put where the
calibration images happen to lie would make its counts look surer than they are.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from compress.errors import UserInputError
from compress.files import check_readable
from compress.runtime.json_values import name
from compress.runtime.manifest import Manifest
from compress.runtime.thresholds import check_thresholds

__all__ = [
    "CALIBRATION",
    "CONFIDENCE_EDGES",
    "ConfidenceCounts",
    "DispatchLine",
    "ReferenceRates",
    "parse_line",
    "read_reference",
]

CALIBRATION = "calibration"  # the note of the manifest
CONFIDENCE_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
PLAN = "compress.plan/1"
LARGEST = 1 << 31
MAX_EXITS = 1 << 10
MAX_EDGES = 1 << 10
MAX_BYTES = 1 << 20  # of a plan or a reference; lines have no limit
CLOSE = 1e-9  # of thresholds, and of shares times images


@dataclass(frozen=True)
class ConfidenceCounts:
    """Confidences of the images that left at each exit.

    Attributes:
        edges: (B,) ascending, each strictly between 0 and 1.
        counts: (E+1, B+1), images with a confidence up to and with each edge, and above the last.
        means: (E+1,) mean confidence; None where no image left.
    """

    edges: Tuple[float, ...]
    counts: Tuple[Tuple[int, ...], ...]
    means: Tuple[Optional[float], ...]

    def place(self, confidence: float) -> int:
        """Return the place in `counts` of a confidence in [0, 1].

        >>> ConfidenceCounts((0.5, 0.9), ((0, 0, 0),), (None,)).place(0.5)
        0
        """
        return bisect_left(self.edges, confidence)


@dataclass(frozen=True)
class ReferenceRates:
    """What became of the calibration images.

    Attributes:
        exit_counts: (E+1,) images that left at each exit, the final head last.
        thresholds: (E,) at which they did.
        confidence: how sure the exits were; None where only the exits are known.
    """

    exit_counts: Tuple[int, ...]
    thresholds: Tuple[float, ...]
    confidence: Optional[ConfidenceCounts] = None

    @property
    def images(self) -> int:
        """How many calibration images there were."""
        return sum(self.exit_counts)

    @property
    def rates(self) -> List[float]:
        """Return the share (E+1,) of the images that left at each exit, in [0, 1]."""
        return [count / self.images for count in self.exit_counts]

    @classmethod
    def measured(
        cls, exits: Iterable[int], confidences: Iterable[float], thresholds: Sequence[float]
    ) -> "ReferenceRates":
        """Count what a bundle did.

        Args:
            exits: (N,) number of the exit of each image, E for the final head.
            confidences: (N,) largest softmax of the logits there, in [0, 1].
            thresholds: (E,) of the bundle.

        Raises:
            UserInputError: there is no image, or a value is out of range.

        >>> ReferenceRates.measured([0, 1, 1], [0.97, 0.2, 0.6], [0.8]).exit_counts
        (1, 2)
        """
        size = len(thresholds) + 1
        counts = [[0] * (len(CONFIDENCE_EDGES) + 1) for _ in range(size)]
        sums = [0.0] * size
        for exit_index, confidence in zip(exits, confidences):
            if not 0 <= exit_index < size or not 0 <= confidence <= 1:
                raise UserInputError(
                    f"an image left at exit {exit_index} with confidence {confidence}; expected "
                    f"exits from 0 to {size - 1} and confidences from 0 to 1"
                )
            counts[exit_index][bisect_left(CONFIDENCE_EDGES, confidence)] += 1
            sums[exit_index] += float(confidence)
        totals = [sum(row) for row in counts]
        confidence_counts = {
            "edges": list(CONFIDENCE_EDGES),
            "counts": counts,
            "means": [min(s / n, 1.0) if n else None for s, n in zip(sums, totals)],
        }
        return cls.from_dict(
            {
                "images": sum(totals),
                "thresholds": [float(bar) for bar in thresholds],
                "exit_counts": totals,
                "confidence": confidence_counts,
            }
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        found = self.confidence
        value: Dict[str, Any] = {
            "images": self.images,
            "thresholds": list(self.thresholds),
            "exit_counts": list(self.exit_counts),
        }
        if found is not None:
            value["confidence"] = {
                "edges": list(found.edges),
                "counts": [list(row) for row in found.counts],
                "means": list(found.means),
            }
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ReferenceRates":
        """Return the reference of these JSON values.

        Raises:
            UserInputError: a field is missing, out of range, or contradicts another.
        """
        try:
            return _parse(value)
        except (KeyError, TypeError, ValueError, UserInputError) as err:
            reason = f"{err} is missing" if isinstance(err, KeyError) else str(err)
            raise UserInputError(
                f"the calibration's exit rates cannot be used ({reason:.200}); export the bundle "
                "again, or count them anew with --reference"
            ) from err

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> "ReferenceRates":
        """Return the note of a manifest.

        Raises:
            UserInputError: it has none, or one that cannot be used or is of other thresholds.
        """
        value = manifest.notes.get(CALIBRATION)
        if not isinstance(value, dict):
            raise UserInputError(
                f"the bundle of {manifest.name} does not tell the exit rates of its calibration "
                "images; export it again with --data, or give --reference FILE: its plan.json, or "
                "what python -m compress.dispatch BUNDLE IMAGES --json prints for these images"
            )
        found = cls.from_dict(value)
        found.check_thresholds(manifest.thresholds, f"the bundle of {manifest.name}")
        return found

    def check_thresholds(self, thresholds: Sequence[float], whose: str) -> None:
        """Raise UserInputError unless these are the thresholds of the reference.

        Args:
            thresholds: to compare.
            whose: in words.
        """
        same = len(thresholds) == len(self.thresholds)
        if not same or any(abs(a - b) > CLOSE for a, b in zip(thresholds, self.thresholds)):
            raise UserInputError(
                f"{whose} has the thresholds {_listed(thresholds)}, the calibration's exit rates "
                f"are of {_listed(self.thresholds)}; other thresholds give other rates, so count "
                "them anew with --reference, or dispatch with those of the bundle"
            )


@dataclass(frozen=True)
class DispatchLine:
    """One line of `python -m compress.dispatch --json`.

    Attributes:
        exit_index: where the image left; None of the summary, and of an image with an error.
        confidence: of its class, in [0, 1].
        exit_at: path of the module behind which that exit stands; None for the final head.
        thresholds: of the summary, which is the last line; None of all others.
    """

    exit_index: Optional[int] = None
    confidence: Optional[float] = None
    exit_at: Optional[str] = None
    thresholds: Optional[Tuple[float, ...]] = None


def parse_line(line: bytes) -> DispatchLine:
    """Read one line.

    Raises:
        ValueError: it is none of the dispatcher's; the message tells why.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise ValueError(f"it is not JSON: {line[:40]!r}") from err
    if not isinstance(value, dict):
        raise ValueError(f"it holds {value!r:.40} in place of an object")
    if "summary" in value:
        return DispatchLine(thresholds=_summary_thresholds(value["summary"]))
    if "error" in value:
        return DispatchLine()
    missing = [key for key in ("exit", "confidence") if key not in value]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    at = value.get("exit_at")
    return DispatchLine(
        exit_index=_count(value["exit"]),
        confidence=_share(value["confidence"]),
        exit_at=None if at is None else name(at),
    )


def read_reference(path: Path) -> ReferenceRates:
    """Read exit rates from a file.

    Args:
        path: a plan, the JSON of `ReferenceRates.to_dict`, or the JSON lines of the dispatcher.

    Raises:
        UserInputError: the file is missing, damaged, or of another kind.
    """
    path = check_readable(Path(path), "reference")
    value = _whole(path)
    if value is not None and "exit_counts" in value:
        return ReferenceRates.from_dict(value)
    if value is not None and value.get("format") == PLAN:
        return _from_plan(value, path)
    return _from_lines(path)


def _whole(path: Path) -> Optional[Dict[str, Any]]:
    """Return the one object that the file holds, or None where it holds something else."""
    if path.stat().st_size > MAX_BYTES:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _from_plan(value: Mapping[str, Any], path: Path) -> ReferenceRates:
    try:
        images = _count(value["accuracy"]["images"])
        counts = [_share(rate) * images for rate in _list(value["exit_rates"], MAX_EXITS)]
        whole = [round(count) for count in counts]
        if any(abs(a - b) > CLOSE * max(1, images) for a, b in zip(counts, whole)):
            raise ValueError(f"exit rates that are no shares of {images} images")
        fields = {"images": images, "thresholds": value["thresholds"], "exit_counts": whole}
        return ReferenceRates.from_dict(fields)
    except (KeyError, TypeError, ValueError) as err:
        raise UserInputError(
            f"plan {path} does not tell exit rates of calibration images ({err!r:.100}); make it "
            "again with python -m compress.plan_exits"
        ) from err


def _from_lines(path: Path) -> ReferenceRates:
    """Count the lines of the dispatcher; its summary, the last, tells the thresholds."""
    exits: List[int] = []
    confidences: List[float] = []
    thresholds: Optional[Tuple[float, ...]] = None
    with open(str(path), "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = parse_line(text)
            except ValueError as err:
                raise UserInputError(
                    f"reference {path} cannot be used: of line {number}, {err}; expected a plan, "
                    "or what python -m compress.dispatch BUNDLE IMAGES --json printed"
                ) from err
            if line.thresholds is not None:
                thresholds = line.thresholds
            if line.exit_index is not None and line.confidence is not None:
                exits.append(line.exit_index)
                confidences.append(line.confidence)
    if thresholds is None:
        raise UserInputError(
            f"reference {path} ends before the dispatcher's summary; let python -m "
            "compress.dispatch run to its end on the calibration images"
        )
    return ReferenceRates.measured(exits, confidences, thresholds)


def _summary_thresholds(summary: Any) -> Tuple[float, ...]:
    if not isinstance(summary, dict) or "thresholds" not in summary:
        raise ValueError("it is a summary without thresholds")
    return tuple(_share(bar) for bar in _list(summary["thresholds"], MAX_EXITS))


def _parse(value: Mapping[str, Any]) -> ReferenceRates:
    counts = tuple(_count(count) for count in _list(value["exit_counts"], MAX_EXITS))
    bars = [_share(bar) for bar in _list(value["thresholds"], MAX_EXITS)]
    images = _count(value["images"])
    if not images or images != sum(counts):
        raise ValueError(f"{images} images, but exit counts {_listed(counts)}")
    found = value.get("confidence")
    return ReferenceRates(
        exit_counts=counts,
        thresholds=tuple(check_thresholds(bars, len(counts) - 1)),
        confidence=None if found is None else _confidence(found, counts),
    )


def _confidence(value: Mapping[str, Any], exit_counts: Tuple[int, ...]) -> ConfidenceCounts:
    edges = tuple(_share(edge) for edge in _list(value["edges"], MAX_EDGES))
    rows = [_list(row, MAX_EDGES + 1) for row in _list(value["counts"], MAX_EXITS)]
    counts = tuple(tuple(_count(count) for count in row) for row in rows)
    means = [None if m is None else _share(m) for m in _list(value["means"], MAX_EXITS)]
    if not edges or any(a >= b for a, b in zip((0.0, *edges), (*edges, 1.0))):
        raise ValueError(f"edges of confidence {_listed(edges)}")
    if any(len(row) != len(edges) + 1 for row in counts):
        raise ValueError(f"other counts of confidence than {len(edges) + 1} an exit")
    if tuple(map(sum, counts)) != exit_counts or len(means) != len(exit_counts):
        raise ValueError("counts of confidence that do not add up to those of the exits")
    if any((mean is None) != (not count) for mean, count in zip(means, exit_counts)):
        raise ValueError("a mean confidence without images, or images without one")
    return ConfidenceCounts(edges, counts, tuple(means))


def _list(value: Any, longest: int) -> List[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise ValueError(f"{value!r:.60} in place of a list of at most {longest} values")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise ValueError(f"{value!r:.60} in place of a whole number")
    return value


def _share(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{value!r:.60} in place of a number from 0 to 1")
    return float(value)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values[:20]) or "no exit"
