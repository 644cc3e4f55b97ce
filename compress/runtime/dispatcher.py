"""The host side of early exit: call the segments in order, stop at the first gate that fires.

An image leaves behind segment i when gate_i >= threshold_i, as compress.runtime.decision has it.
Only gates cross to the host between segments; what else crosses stays where the backend keeps it.
In a batch, images that left do not travel on, and the decisions are those of image by image.

A number that is none must not pass for a class. An image that holds NaN or infinity is replaced by
a blank one, as some operators make a number of it again and others spoil its neighbours; it and
every image whose logits are not finite get the class -1.

A network without exits may give further outputs, and one that is no classifier gives them alone.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

import numpy as np

from compress.errors import UserInputError
from compress.runtime.backend import Backend
from compress.runtime.backends import open_backend
from compress.runtime.decision import fires, leaves
from compress.runtime.first_call import FIRST_CALL_SECONDS
from compress.runtime.manifest import Manifest, read_manifest

__all__ = ["Dispatched", "Dispatcher", "SegmentTime"]

SegmentTime = Tuple[int, int, float]  # segment, images, milliseconds
NO_CLASS = -1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dispatched:
    """What became of each image, in the order in which they came.

    Attributes:
        logits: (N, K) float32, of the exit where each image left; NaN where the image itself is
            not finite. K is 0 where the network is no classifier.
        classes: (N,) int64, the most likely class; -1 where the logits are not finite, and where
            there are none, so look before you take it for a place in a list. The first of them
            that are not finite is told in the log.
        exits: (N,) int64, number of the exit, E for the final head.
        segment_ms: of every segment that ran: its number, images in it, milliseconds; None unless
            times were asked for.
        outputs: what the network gives beside its logits, (N, …) by name, float32 or int32; NaN
            or -1 where the image itself is not finite. Empty where the manifest names none.
    """

    logits: np.ndarray
    classes: np.ndarray
    exits: np.ndarray
    segment_ms: Optional[List[SegmentTime]] = None
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)


class Dispatcher:
    """Runs a bundle.

    Threads may share one: `run`, `set_thresholds` and `close` hold a lock, so that images of one
    call do not meet those of another. The lock costs less than a microsecond a call, and a call
    waits for the one before it: more threads give no more images a second. Where they shall, give
    each its own Dispatcher, and its own copy of weights and buffers with it.

    Args:
        bundle: its folder.
        backend: "onnxruntime", "tensorrt", or an object of your own; None takes TensorRT where
            the bundle has engines, else ONNX Runtime.
        thresholds: in place of the manifest's, one for all exits or one for each, in [0, 1].
        threads: of ONNX Runtime on the CPU; None leaves it to ONNX Runtime.
        provider: of ONNX Runtime, "cpu" or "cuda"; None takes "cuda" where it starts.
        first_call_seconds: that ONNX Runtime may take to open the segments and to run each once.
        trust_engines: load TensorRT engines that this user did not build on this machine, too.
        wait: for the GPU under TensorRT: "spin" is fastest and keeps a core busy, "yield" shares
            it, "block" sleeps.

    Raises:
        UserInputError: the bundle or the thresholds cannot be used.
        ToolchainError: the backend is missing, cannot run the bundle, or does not end in time.

    >>> Dispatcher("digits.bundle").run(images).classes  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: Union[str, Path],
        backend: Union[str, Backend, None] = None,
        *,
        thresholds: Union[float, Sequence[float], None] = None,
        threads: Optional[int] = None,
        provider: Optional[str] = None,
        first_call_seconds: float = FIRST_CALL_SECONDS,
        trust_engines: bool = False,
        wait: str = "spin",
    ) -> None:
        manifest = read_manifest(Path(bundle))
        if thresholds is not None:
            manifest = manifest.with_thresholds(thresholds)
        self.manifest: Manifest = manifest
        self.backend = (
            backend
            if isinstance(backend, Backend)
            else open_backend(
                backend,
                Path(bundle),
                manifest,
                threads=threads,
                provider=provider,
                first_call_seconds=first_call_seconds,
                trust_engines=trust_engines,
                wait=wait,
            )
        )
        self._lock = threading.Lock()
        self._is_closed = False
        self._has_warned = False
        self.last = len(manifest.segments) - 1
        self._bars = manifest.thresholds
        self._has_further = bool(manifest.further_outputs)
        self._one_image = (1, *manifest.image.shape)

    def set_thresholds(self, thresholds: Union[float, Sequence[float]]) -> None:
        """Use other thresholds from the next image on; nothing is rebuilt.

        Raises:
            UserInputError: they do not fit the exits, or lie outside [0, 1].
        """
        with self._lock:
            self.manifest = self.manifest.with_thresholds(thresholds)
            self._bars = self.manifest.thresholds

    def run(self, images: np.ndarray, *, times: bool = False) -> Dispatched:
        """Classify images.

        Args:
            images: (N, C, H, W) or one (C, H, W); float32 that is prepared already, or uint8 RGB
                of the network's size, which is normalised here.
            times: also tell how long every segment took.

        Raises:
            UserInputError: images of another size or type than the network takes, or none, or the
                dispatcher is closed.
            ToolchainError: the backend failed.
        """
        batch = self._prepared(images)
        poisoned = _not_finite(batch)
        if poisoned is not None:
            batch = np.where(poisoned[:, None, None, None], np.float32(0), batch)
        clock: Optional[List[SegmentTime]] = [] if times else None
        if self._has_further:
            return self._run_whole(batch, poisoned, clock)
        with self._lock:
            if self._is_closed:
                raise self._closed()
            logits, exits = self._dispatched(batch, clock)
        if poisoned is not None:
            logits[poisoned] = np.nan
        return Dispatched(logits, self._classes(logits), exits, clock)

    def close(self) -> None:
        """Give back what the backend holds; a second time does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self.backend.close()

    def __enter__(self) -> "Dispatcher":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _closed(self) -> UserInputError:
        return UserInputError(
            f"the dispatcher of {self.manifest.name} is closed; open the bundle again"
        )

    def _run_whole(
        self,
        batch: np.ndarray,
        poisoned: Optional[np.ndarray],
        clock: Optional[List[SegmentTime]],
    ) -> Dispatched:
        """Run a network without exits that gives more than logits."""
        step = self.backend.max_batch
        parts: List[np.ndarray] = []
        further: Dict[str, List[np.ndarray]] = {}
        with self._lock:
            if self._is_closed:
                raise self._closed()
            for start in range(0, len(batch), step):
                self.backend.load(batch[start : start + step])
                self._run_segment(0, len(batch[start : start + step]), clock)
                parts.append(self.backend.logits().copy())
                for name, values in self.backend.outputs().items():
                    further.setdefault(name, []).append(values.copy())
        logits = np.concatenate(parts)
        outputs = {name: np.concatenate(values) for name, values in further.items()}
        if poisoned is not None:
            logits[poisoned] = np.nan
            for values in outputs.values():
                values[poisoned] = np.nan if values.dtype.kind == "f" else NO_CLASS
        exits = np.zeros(len(batch), dtype=np.int64)
        if self.manifest.classes:
            classes = self._classes(logits)
        else:
            classes = np.full(len(batch), NO_CLASS, dtype=np.int64)
        return Dispatched(logits, classes, exits, clock, outputs)

    def _dispatched(
        self, batch: np.ndarray, clock: Optional[List[SegmentTime]]
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Return logits (N, K) and exits (N,), while no other thread uses the backend."""
        if len(batch) == 1:
            taken = self._run_one(batch, clock)
            return self.backend.logits().copy(), np.array([taken])
        logits = np.empty((len(batch), len(self.manifest.classes)), dtype=np.float32)
        exits = np.full(len(batch), self.last, dtype=np.int64)
        step = self.backend.max_batch
        for start in range(0, len(batch), step):
            part = slice(start, start + step)
            self._run_batch(batch[part], logits[part], exits[part], clock)
        return logits, exits

    def _classes(self, logits: np.ndarray) -> np.ndarray:
        classes = logits.argmax(axis=1)  # which takes NaN for the largest
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            classes[~finite] = NO_CLASS
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "%s gave logits that are not finite for %d of %d images: class %d",
                    *(self.manifest.name, np.sum(~finite), len(finite), NO_CLASS),
                )
        return classes

    def _run_one(self, image: np.ndarray, clock: Optional[List[SegmentTime]]) -> int:
        """Run one image and return its exit: what most devices do all day, in few steps."""
        self.backend.load(image)
        for segment, bar in enumerate(self._bars):
            if leaves(self._run_segment(segment, 1, clock).item(), bar):
                return segment
        self._run_segment(self.last, 1, clock)
        return self.last

    def _run_batch(
        self,
        images: np.ndarray,
        logits: np.ndarray,
        exits: np.ndarray,
        clock: Optional[List[SegmentTime]],
    ) -> None:
        """Run one batch; its results go into the rows of `logits` and `exits`."""
        backend = self.backend
        backend.load(images)
        alive: Optional[np.ndarray] = None  # places of the images still on their way; None is all
        for segment, bar in enumerate(self._bars):
            gates = self._run_segment(segment, len(images) if alive is None else len(alive), clock)
            left = fires(gates, bar)
            if not left.any():
                continue
            rows = np.arange(len(images)) if alive is None else alive
            logits[rows[left]] = backend.logits()[left]
            exits[rows[left]] = segment
            if left.all():
                return
            backend.keep(np.flatnonzero(~left))
            alive = rows[~left]
        self._run_segment(self.last, len(images) if alive is None else len(alive), clock)
        logits[slice(None) if alive is None else alive] = backend.logits()

    def _run_segment(
        self, segment: int, images: int, clock: Optional[List[SegmentTime]]
    ) -> np.ndarray:
        if clock is None:
            return self.backend.run(segment)  # type: ignore  # None of the last segment alone
        start = time.perf_counter()
        gates = self.backend.run(segment)
        clock.append((segment, images, 1e3 * (time.perf_counter() - start)))
        return gates  # type: ignore  # None of the last segment alone

    def _prepared(self, images: np.ndarray) -> np.ndarray:
        if not isinstance(images, np.ndarray):
            raise UserInputError(f"images are a {type(images).__name__}; expected a numpy array")
        if images.shape == self._one_image and images.dtype == np.float32:
            return np.ascontiguousarray(images)
        shape = self.manifest.image.shape
        batch = images[None] if images.ndim == len(shape) else images
        if batch.shape[1:] != shape or not len(batch):
            raise UserInputError(
                f"images have the shape {images.shape}; expected (N, {', '.join(map(str, shape))}) "
                f"with N at least 1, which {self.manifest.name} takes"
            )
        if batch.dtype == np.uint8 and self.manifest.preprocessing is not None:
            return self.manifest.preprocessing.normalize_array(batch)
        if batch.dtype != np.float32:
            kinds = "float32" if self.manifest.preprocessing is None else "float32 or uint8"
            raise UserInputError(f"images are of type {batch.dtype}; expected {kinds}")
        return np.ascontiguousarray(batch)


def _not_finite(batch: np.ndarray) -> Optional[np.ndarray]:
    """Return which images (N,) hold NaN or infinity; None where none does."""
    finite = np.isfinite(batch)  # 33 µs of an image of 224 x 224
    return None if finite.all() else ~finite.all(axis=(1, 2, 3))
