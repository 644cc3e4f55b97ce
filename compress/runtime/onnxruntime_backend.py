"""Segments in ONNX Runtime: on the CPU, or on a GPU where its CUDA provider is installed.

Every tensor between segments lies in a buffer that is made once and bound by address, so a call
passes pointers and copies nothing. Thread pools do not spin: with one spinning pool per session,
each takes the cores from the segment that runs, and a chain of four costs 3 to 4 times the graph.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np

from compress.errors import ToolchainError
from compress.optional import require
from compress.runtime.backend import Backend
from compress.runtime.gather_model import gather_model
from compress.runtime.manifest import Manifest, Segment, TensorSpec
from compress.runtime.onnxruntime_session import SessionMaker, check_session

__all__ = ["OnnxRuntimeBackend"]


class _Call(NamedTuple):
    """A segment ready to run on a number of images, and where its results will be."""

    session: Any
    binding: Any
    gates: Optional[np.ndarray]
    logits: np.ndarray


class OnnxRuntimeBackend(Backend):
    """Runs a bundle in ONNX Runtime.

    Args:
        bundle: its folder.
        manifest: of the bundle, checked.
        threads: inside an operation, on the CPU; None leaves it to ONNX Runtime.
        device: "cpu" or "cuda"; None takes "cuda" where that provider starts, else "cpu".

    Raises:
        UserInputError: a segment takes or gives something else than its manifest says.
        ToolchainError: ONNX Runtime is missing, cannot read a segment, or has no memory for so
            many images.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        *,
        threads: Optional[int] = None,
        device: Optional[str] = None,
    ) -> None:
        self._ort = require("onnxruntime", "running bundles on this machine")
        self._maker = SessionMaker(self._ort, device, threads)
        self._run_options: Any = None  # given at each call they would cost microseconds
        self.max_batch = manifest.batch[1]
        self._segments = manifest.segments
        self._sessions = [self._opened(bundle, segment) for segment in manifest.segments]
        self.device = self._maker.device
        try:
            self._results = [_result_buffers(s, self.max_batch) for s in manifest.segments]
            self._hidden = [self._buffer(_hidden_bytes(manifest)) for _ in range(2)]
            self._images = np.empty((self.max_batch, *manifest.image.shape), dtype=np.float32)
        except MemoryError as err:
            raise ToolchainError(
                f"there is no memory for batches of {self.max_batch} images of {manifest.name}; "
                "export the bundle with a smaller --batch"
            ) from err
        self._gathers: Dict[int, Any] = {}
        self._calls: Dict[Tuple[int, int, int], _Call] = {}
        self._rows = 0  # images that are still on their way
        self._ran = 0  # the segment that ran last
        self._at = 0  # which of the two buffers holds the hidden states
        self._logits = np.empty(0, dtype=np.float32)

    def load(self, images: np.ndarray) -> None:
        """Copy a batch (B, C, H, W) float32 to where segment 0 reads it."""
        self._rows = len(images)
        self._images[: self._rows] = images  # binding a new address takes longer
        self._at = 1  # so that segment 0 writes buffer 0

    def run(self, segment: int) -> Optional[np.ndarray]:
        """Run a segment; return its gates (B,), None of the last."""
        # Few steps on purpose: behind a segment the caches are cold, and each costs microseconds.
        call = self._calls.get((segment, self._rows, self._at)) or self._prepare(segment)
        try:
            call.session.run_with_iobinding(call.binding, self._run_options)
        except Exception as err:  # ONNX Runtime has a class of its own per status code
            raise self._failed(segment, err) from err
        if self.device != "cpu":
            call.binding.synchronize_outputs()
        self._ran, self._at, self._logits = segment, 1 - self._at, call.logits
        return call.gates

    def logits(self) -> np.ndarray:
        """Return logits (B, K) of the segment just run."""
        return self._logits

    def keep(self, rows: np.ndarray) -> None:
        """Compact the hidden states of the batch to these rows."""
        spec = self._segments[self._ran].output("hidden")
        if self.device == "cpu":
            _move_rows(self._hidden[self._at], spec, rows)
        else:
            self._gather(spec, rows)
        self._rows = len(rows)

    def close(self) -> None:
        """Drop sessions and buffers."""
        self._calls.clear()
        self._gathers.clear()
        self._sessions, self._hidden, self._results = [], [], []

    def try_once(self) -> None:
        """Run every segment once, on a blank image, in a way that `interrupt` can end.

        Raises:
            ToolchainError: ONNX Runtime failed, or was interrupted.
        """
        self._run_options = self._ort.RunOptions()
        self.load(np.zeros((1, *self._images.shape[1:]), dtype=np.float32))
        for segment in range(len(self._segments)):
            self.run(segment)
        self._run_options = None

    def interrupt(self) -> None:
        """Let `try_once`, which another thread is in, end with an error."""
        if self._run_options is not None:
            self._run_options.terminate = True

    def _opened(self, bundle: Path, segment: Segment) -> Any:
        session = self._maker.open(str(bundle / segment.file))
        check_session(session, segment, self.max_batch)
        return session

    def _failed(self, segment: int, err: Exception) -> ToolchainError:
        return ToolchainError(
            f"ONNX Runtime {self._ort.__version__} failed in {self._segments[segment].file} "
            f"({' '.join(str(err).split())[:300]}); export the bundle again"
        )

    def _buffer(self, size: int) -> Any:
        """Memory where the segments run: an array, or an OrtValue on the GPU."""
        if self.device == "cpu":
            return np.empty(size, dtype=np.uint8)
        words = -(-size // 4)
        return self._ort.OrtValue.ortvalue_from_shape_and_type([words], np.float32, self.device, 0)

    def _prepare(self, segment: int) -> "_Call":
        """Bind everything to its address, for as many images as there are now."""
        session, results = self._sessions[segment], self._results[segment]
        binding, rows = session.io_binding(), self._rows
        (taken,) = self._segments[segment].inputs
        if segment == 0:
            _bind(binding.bind_input, taken, self._images[:rows])
        else:
            self._bind_hidden(binding.bind_input, taken, self._at)
        for spec in self._segments[segment].outputs:
            if spec.name == "hidden":
                self._bind_hidden(binding.bind_output, spec, 1 - self._at)
            else:
                _bind(binding.bind_output, spec, results[spec.name][:rows])
        gates = results["gate"][:rows] if "gate" in results else None
        call = _Call(session, binding, gates, results["logits"][:rows])
        self._calls[segment, rows, self._at] = call
        return call

    def _bind_hidden(
        self, bind: Any, spec: TensorSpec, which: int, rows: Optional[int] = None
    ) -> None:
        buffer = self._hidden[which]
        address = buffer.ctypes.data if self.device == "cpu" else buffer.data_ptr()
        shape = [self._rows if rows is None else rows, *spec.shape]
        bind(spec.name, self.device, 0, np.dtype(spec.dtype), shape, address)

    def _gather(self, spec: TensorSpec, rows: np.ndarray) -> None:
        """Copy rows into the other buffer, on the device."""
        if self._ran not in self._gathers:
            self._gathers[self._ran] = self._maker.open(gather_model(spec.dtype, spec.shape))
        session = self._gathers[self._ran]
        binding = session.io_binding()
        self._bind_hidden(binding.bind_input, spec, self._at)
        binding.bind_cpu_input("rows", rows.astype(np.int64))
        self._bind_hidden(binding.bind_output, replace(spec, name="kept"), 1 - self._at, len(rows))
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        self._at = 1 - self._at


def _result_buffers(segment: Segment, rows: int) -> Dict[str, np.ndarray]:
    return {
        spec.name: np.empty((rows, *spec.shape), dtype=spec.dtype)
        for spec in segment.outputs
        if spec.name != "hidden"
    }


def _hidden_bytes(manifest: Manifest) -> int:
    sizes = [_bytes_of(segment.output("hidden")) for segment in manifest.segments[:-1]]
    return manifest.batch[1] * max(sizes, default=0)


def _bytes_of(spec: TensorSpec) -> int:
    return np.dtype(spec.dtype).itemsize * int(np.prod(spec.shape))


def _bind(bind: Any, spec: TensorSpec, array: np.ndarray) -> None:
    bind(spec.name, "cpu", 0, array.dtype, list(array.shape), array.ctypes.data)


def _move_rows(buffer: np.ndarray, spec: TensorSpec, rows: np.ndarray) -> None:
    size = _bytes_of(spec)
    count = len(buffer) // size
    hidden = buffer[: count * size].reshape(count, size)
    for place, row in enumerate(rows.tolist()):  # ascending, so nothing is overwritten
        if place != row:
            hidden[place] = hidden[row]
