"""From files to predictions as a stream: images are read ahead while the network runs.

Threads decode and prepare at most so many images beyond the one that is asked for; Pillow and
numpy let go of the interpreter's lock meanwhile. Images keep their order. A damaged image is an
item with its error, not an end.
"""

import os
import time
from array import array
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np

from compress.cli import printable
from compress.errors import UserInputError
from compress.runtime.dispatcher import Dispatcher, SegmentTime
from compress.runtime.manifest import Manifest
from compress.runtime.pictures import SUFFIXES, Reading

__all__ = ["Item", "Prediction", "Tally", "batched", "find_pictures", "predictions", "prefetched"]

THREAD_NAMES = "compress-read"


class Item(NamedTuple):
    """One image that was read, or why it could not be.

    Attributes:
        name: of the image.
        image: (C, H, W) float32; None where it could not be read.
        error: None where it could.
    """

    name: str
    image: Optional[np.ndarray]
    error: Optional[str]


@dataclass(frozen=True)
class Prediction:
    """What became of one image; all but `image` are None where `error` is not.

    Attributes:
        image: its name.
        class_name: of the most likely class.
        class_index: its place in the logits.
        confidence: softmax of the logits at that place, in [0, 1].
        exit_index: number of the exit, E for the final head.
        exit_at: path of the module behind which that exit stands; None for the final head.
        latency_ms: of the call that the image was in, a whole batch; reading is not in it.
        segment_ms: of that call, milliseconds in each segment up to the exit of the image; None
            unless times were asked for.
        error: why there is no prediction.
    """

    image: str
    class_name: Optional[str] = None
    class_index: Optional[int] = None
    confidence: Optional[float] = None
    exit_index: Optional[int] = None
    exit_at: Optional[str] = None
    latency_ms: Optional[float] = None
    segment_ms: Optional[List[float]] = None
    error: Optional[str] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return JSON values: the error alone, or all the rest."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        value = {
            "image": self.image,
            "class": self.class_name,
            "class_index": self.class_index,
            "confidence": self.confidence,
            "exit": self.exit_index,
            "exit_at": self.exit_at,
            "latency_ms": self.latency_ms,
        }
        return value if self.segment_ms is None else {**value, "segment_ms": self.segment_ms}

    def to_text(self) -> str:
        """Return one line; what a terminal would obey in names is escaped."""
        if self.error is not None:
            return printable(f"{self.image}: {self.error}")
        line = f"{self.image}: {self.class_name} {self.confidence:.4f}, exit {self.exit_index}"
        line += "" if self.exit_at is None else f" ({self.exit_at})"
        line += f", {self.latency_ms:.2f} ms"
        if self.segment_ms is not None:
            line += f" (segments {', '.join(f'{each:.2f}' for each in self.segment_ms)})"
        return printable(line)


class Tally:
    """Counts predictions, of one run of a manifest, from its making on."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.errors = 0
        self._exits = [0] * len(manifest.segments)
        self._latencies_ms = array("d")
        self._segment_ms = [array("d") for _ in manifest.segments]
        self._seconds = 0.0
        self._start = time.perf_counter()

    def add(self, prediction: Prediction) -> None:
        """Count one image."""
        self._seconds = time.perf_counter() - self._start
        if prediction.exit_index is None or prediction.latency_ms is None:
            self.errors += 1
            return
        self._exits[prediction.exit_index] += 1
        self._latencies_ms.append(prediction.latency_ms)
        for times, milliseconds in zip(self._segment_ms, prediction.segment_ms or ()):
            times.append(milliseconds)

    @property
    def images(self) -> int:
        """Number of images, those with errors among them."""
        return self.errors + len(self._latencies_ms)

    def to_dict(self) -> Dict[str, Any]:
        """Return JSON values; None where there is no image to take them from.

        `images_per_second` counts reading too, latencies do not. `segment_ms_median` is there where
        times were asked for; a segment's is taken over the images that went through it.
        """
        done = len(self._latencies_ms)
        value = {
            "images": self.images,
            "errors": self.errors,
            "images_per_second": done / self._seconds if done else None,
            "latency_ms_median": _percentile(self._latencies_ms, 50),
            "latency_ms_p99": _percentile(self._latencies_ms, 99),
            "thresholds": self.manifest.thresholds,
            "exit_rates": [count / done if done else None for count in self._exits],
        }
        if any(self._segment_ms):
            value["segment_ms_median"] = [_percentile(times, 50) for times in self._segment_ms]
        return value

    def to_text(self) -> str:
        """Return the same in a few lines; nothing was measured where there is no image."""
        value = self.to_dict()
        median, p99 = value["latency_ms_median"], value["latency_ms_p99"]
        lines = [f"{self.images} images, {self.errors} with errors"]
        if self.images > self.errors:
            rates = [f"{i}: {100 * rate:.1f} %" for i, rate in enumerate(value["exit_rates"])]
            lines += [
                f"exits {', '.join(rates)}",
                f"{value['images_per_second']:.1f} images per second, reading included",
                f"latency {median:.2f} ms median, {p99:.2f} ms 99th percentile",
            ]
        if "segment_ms_median" in value:
            times = ["-" if ms is None else f"{ms:.2f}" for ms in value["segment_ms_median"]]
            lines.append(f"segments {', '.join(times)} ms median")
        return "\n".join(lines)


def find_pictures(paths: Iterable[Path]) -> List[Path]:
    """Return the files themselves, and of folders what lies inside at any depth, sorted.

    Hidden files and what macOS puts into archives are left out of folders.

    Raises:
        UserInputError: a path does not exist, or a folder holds no image or cannot be listed.
    """
    found: List[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(str(path)):
            found += _inside(path)
        elif os.path.exists(str(path)):
            found.append(path)
        else:
            raise UserInputError(f"image {path} does not exist; check the path")
    return found


@contextmanager
def prefetched(
    readings: Iterable[Reading], *, threads: Optional[int] = None, ahead: int = 4
) -> Iterator[Iterator[Item]]:
    """Read images in threads; give an iterator of them, in order.

    The threads have ended when the block is left, however it is left; what they had read and was
    not asked for is dropped.

    Args:
        readings: taken one by one as they are needed.
        threads: that read; half the processors by default, and at most 4.
        ahead: images at most that are being read, or read and not asked for yet; at least 1.

    Raises:
        UserInputError: `ahead` or `threads` is less than 1.

    >>> with prefetched([Reading("zeros", lambda: np.zeros((3, 2, 2), np.float32))]) as items:
    ...     [item.name for item in items]
    ['zeros']
    """
    count = _reading_threads() if threads is None else threads
    if count < 1 or ahead < 1:
        raise UserInputError(f"{count} threads read {ahead} images ahead; expected at least 1 each")
    pool = ThreadPoolExecutor(max_workers=min(count, ahead), thread_name_prefix=THREAD_NAMES)
    waiting: Deque[Future[Item]] = deque()
    try:
        yield _in_order(pool, iter(readings), waiting, ahead)
    finally:
        for future in waiting:  # shutdown(cancel_futures=True) is of Python 3.9
            future.cancel()
        pool.shutdown(wait=True)


def batched(items: Iterable[Item], size: int) -> Iterator[List[Item]]:
    """Group neighbouring items, damaged ones too, by `size`; the last group may be smaller."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def predictions(
    dispatcher: Dispatcher, items: Iterable[Item], *, batch: int = 1, times: bool = False
) -> Iterator[Prediction]:
    """Classify images in batches of at most `batch`; yield what became of each, in order.

    An image whose logits are not finite, as overflow in half precision gives, is an error of its
    own: it has no most likely class.
    """
    for group in batched(items, batch):
        images = [item.image for item in group if item.image is not None]
        names = [item.name for item in group if item.image is not None]
        rows = iter(_predict(dispatcher, names, images, times) if images else ())
        for item in group:
            yield next(rows) if item.error is None else Prediction(item.name, error=item.error)


def _inside(folder: Path) -> List[Path]:
    found: List[Path] = []
    for place, folders, files in os.walk(str(folder), onerror=_refuse_folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [
            Path(place, name)
            for name in files
            if os.path.splitext(name)[1].lower() in SUFFIXES and not _is_hidden(name)
        ]
    if not found:
        raise UserInputError(
            f"folder {folder} holds no image; expected files that end with {', '.join(SUFFIXES)}"
        )
    return sorted(found)


def _refuse_folder(err: OSError) -> None:
    raise UserInputError(
        f"folder {err.filename} cannot be listed ({err.strerror}); check its permissions"
    ) from err


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _reading_threads() -> int:
    return max(1, min(4, (os.cpu_count() or 1) // 2))  # the network wants processors too


def _in_order(
    pool: ThreadPoolExecutor,
    readings: Iterator[Reading],
    waiting: "Deque[Future[Item]]",
    ahead: int,
) -> Iterator[Item]:
    while True:
        for reading in islice(readings, ahead - len(waiting)):
            waiting.append(pool.submit(_read, reading))
        if not waiting:
            return
        item = waiting[0].result()
        waiting.popleft()
        yield item


def _read(reading: Reading) -> Item:
    try:
        return Item(reading.name, reading.read(), None)
    except UserInputError as err:  # anything else is no matter of this image, and ends the stream
        return Item(reading.name, None, str(err))


def _predict(
    dispatcher: Dispatcher, names: Sequence[str], images: Sequence[np.ndarray], times: bool
) -> List[Prediction]:
    start = time.perf_counter()
    done = dispatcher.run(np.stack(images), times=times)
    latency_ms = 1e3 * (time.perf_counter() - start)
    return [
        _prediction(dispatcher.manifest, name, logits, int(exit_index), latency_ms, done.segment_ms)
        for name, logits, exit_index in zip(names, done.logits, done.exits)
    ]


def _prediction(
    manifest: Manifest,
    name: str,
    logits: np.ndarray,
    exit_index: int,
    latency_ms: float,
    segment_ms: Optional[List[SegmentTime]],
) -> Prediction:
    if not np.isfinite(logits).all():
        return Prediction(name, error="the network gave logits that are not finite")
    class_index = int(logits.argmax())
    return Prediction(
        image=name,
        class_name=manifest.classes[class_index],
        class_index=class_index,
        confidence=_confidence(logits),
        exit_index=exit_index,
        exit_at=manifest.segments[exit_index].at,
        latency_ms=latency_ms,
        segment_ms=None if segment_ms is None else _up_to(exit_index, segment_ms),
    )


def _confidence(logits: np.ndarray) -> float:
    """Return the largest softmax: 1 / Σ exp(logit - largest logit)."""
    return float(1 / np.exp(logits.astype(np.float64) - logits.max()).sum())


def _percentile(values: Sequence[float], percent: float) -> Optional[float]:
    return float(np.percentile(values, percent)) if len(values) else None


def _up_to(exit_index: int, segment_ms: Iterable[SegmentTime]) -> List[float]:
    """Return milliseconds in each segment: summed, as one call may run several batches."""
    total = [0.0] * (exit_index + 1)
    for segment, _, milliseconds in segment_ms:
        if segment <= exit_index:
            total[segment] += milliseconds
    return total
