"""Segments in ONNX Runtime: on the CPU, or on a GPU where its CUDA provider is installed.

Every tensor between segments lies in a buffer that is made once and bound by address, so a call
passes pointers and copies nothing, however many cross. Where images leave, the rows of those that
live on move up: on the CPU where they lie; on a GPU, where all rows move at a time, from one set of
buffers into the other. The image lies in host memory.

Thread pools do not spin: with one spinning pool per session, each takes the cores from the segment
that runs, and a chain of four costs 3 to 4 times the graph.
"""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from compress.errors import ToolchainError
from compress.optional import require
from compress.runtime.backend import Backend
from compress.runtime.gather_model import gather_model
from compress.runtime.manifest import IMAGE, Manifest, Segment, TensorSpec
from compress.runtime.onnxruntime_session import SessionMaker, check_session
from compress.runtime.tensor_memory import places_of

__all__ = ["OnnxRuntimeBackend"]


class _Call(NamedTuple):
    """A segment ready to run on a number of images, and where its results will be."""

    session: Any
    binding: Any
    gates: Optional[np.ndarray]
    logits: np.ndarray
    further: Dict[str, np.ndarray]


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
        self._further = manifest.further_outputs
        self._living = [manifest.living(i) for i in range(len(manifest.segments))]
        self._places = places_of(manifest)
        self._sessions = [self._opened(bundle, segment) for segment in manifest.segments]
        self.device = self._maker.device
        try:
            self._results = [_result_buffers(s, self.max_batch) for s in manifest.segments]
            self._sets = [self._buffers() for _ in range(1 if self._moves_in_place else 2)]
            self._images = np.empty((self.max_batch, *manifest.image.shape), dtype=np.float32)
        except MemoryError as err:
            raise ToolchainError(
                f"there is no memory for batches of {self.max_batch} images of {manifest.name}; "
                "export the bundle with a smaller --batch"
            ) from err
        self._gathers: Dict[Tuple[str, Tuple[int, ...]], Any] = {}
        self._calls: Dict[Tuple[int, int, int], _Call] = {}
        self._rows = 0  # images that are still on their way
        self._ran = 0  # the segment that ran last
        self._set = 0  # of buffers, that holds the crossing tensors
        self._logits = np.empty(0, dtype=np.float32)
        self._given: Dict[str, np.ndarray] = {}  # the further outputs

    def load(self, images: np.ndarray) -> None:
        """Copy a batch (B, C, H, W) float32 to where segment 0 reads it."""
        self._rows = len(images)
        self._images[: self._rows] = images  # binding a new address takes longer
        self._set = 0

    def run(self, segment: int) -> Optional[np.ndarray]:
        """Run a segment; return its gates (B,), None of the last."""
        # Few steps on purpose: behind a segment the caches are cold, and each costs microseconds.
        call = self._calls.get((segment, self._rows, self._set)) or self._prepare(segment)
        try:
            call.session.run_with_iobinding(call.binding, self._run_options)
        except Exception as err:  # ONNX Runtime has a class of its own per status code
            raise self._failed(segment, err) from err
        if self.device != "cpu":
            call.binding.synchronize_outputs()
        self._ran = segment
        self._logits, self._given = call.logits, call.further
        return call.gates

    def logits(self) -> np.ndarray:
        """Return logits (B, K) of the segment just run."""
        return self._logits

    def outputs(self) -> Dict[str, np.ndarray]:
        """Return the further outputs (B, …) of the segment just run."""
        return dict(self._given)

    def keep(self, rows: np.ndarray) -> None:
        """Compact the living tensors of the batch to these rows."""
        for spec in self._living[self._ran]:
            if spec.name == IMAGE:
                _move_rows(self._images, rows)
            elif self._moves_in_place:
                _move_rows(self._rows_of(spec), rows)
            else:
                self._gather(spec, rows)
        if not self._moves_in_place:
            self._set = 1 - self._set
        self._rows = len(rows)

    def close(self) -> None:
        """Drop sessions and buffers."""
        self._calls.clear()
        self._gathers.clear()
        self._sessions, self._sets, self._results = [], [], []

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
        session = self._maker.open(str(bundle / segment.file), half=segment.precision == "fp16")
        check_session(session, segment, self.max_batch)
        return session

    def _failed(self, segment: int, err: Exception) -> ToolchainError:
        return ToolchainError(
            f"ONNX Runtime {self._ort.__version__} failed in {self._segments[segment].file} "
            f"({' '.join(str(err).split())[:300]}); export the bundle again"
        )

    @property
    def _moves_in_place(self) -> bool:
        return self.device == "cpu"

    def _buffers(self) -> List[Any]:
        """One for each place, where the segments run: arrays, or OrtValues on the GPU."""
        sizes = [self.max_batch * size for size in self._places.image_bytes]
        if self.device == "cpu":
            return [np.empty(size, dtype=np.uint8) for size in sizes]
        make = self._ort.OrtValue.ortvalue_from_shape_and_type
        return [make([-(-size // 4)], np.float32, self.device, 0) for size in sizes]

    def _rows_of(self, spec: TensorSpec) -> np.ndarray:
        """Bytes (B, …) of a crossing tensor on the CPU."""
        buffer: np.ndarray = self._sets[self._set][self._places.of[spec.name]]
        return buffer[: self.max_batch * spec.image_bytes].reshape(self.max_batch, spec.image_bytes)

    def _prepare(self, segment: int) -> "_Call":
        """Bind everything to its address, for as many images as there are now."""
        session, results = self._sessions[segment], self._results[segment]
        binding, rows = session.io_binding(), self._rows
        for spec in self._segments[segment].inputs:
            if spec.name == IMAGE:
                _bind(binding.bind_input, spec, self._images[:rows])
            else:
                self._bind_crossing(binding.bind_input, spec.file_name, spec, self._set, rows)
        for spec in self._segments[segment].outputs:
            if spec.name in results:
                _bind(binding.bind_output, spec, results[spec.name][:rows])
            else:
                self._bind_crossing(binding.bind_output, spec.file_name, spec, self._set, rows)
        gates = results["gate"][:rows] if "gate" in results else None
        logits = results["logits"][:rows]
        further = {s.name: results[s.name][:rows] for s in self._further if s.name in results}
        call = _Call(session, binding, gates, logits, further)
        self._calls[segment, rows, self._set] = call
        return call

    def _bind_crossing(self, bind: Any, name: str, spec: TensorSpec, which: int, rows: int) -> None:
        """Bind a crossing tensor in a set of buffers to what a session calls `name`."""
        buffer = self._sets[which][self._places.of[spec.name]]
        address = buffer.ctypes.data if self.device == "cpu" else buffer.data_ptr()
        bind(name, self.device, 0, np.dtype(spec.dtype), [rows, *spec.shape], address)

    def _gather(self, spec: TensorSpec, rows: np.ndarray) -> None:
        """Copy rows of a tensor into the other set of buffers, on the device."""
        kind = spec.dtype, spec.shape
        if kind not in self._gathers:
            self._gathers[kind] = self._maker.open(gather_model(*kind))
        session = self._gathers[kind]
        binding, other = session.io_binding(), 1 - self._set
        self._bind_crossing(binding.bind_input, "hidden", spec, self._set, self._rows)
        binding.bind_cpu_input("rows", rows.astype(np.int64))
        self._bind_crossing(binding.bind_output, "kept", spec, other, len(rows))
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def _result_buffers(segment: Segment, rows: int) -> Dict[str, np.ndarray]:
    buffers = {"logits": np.empty((rows, 0), dtype=np.float32)}  # of what has none
    crossing = {spec.name for spec in segment.gives}
    for spec in segment.outputs:
        if spec.name not in crossing:
            buffers[spec.name] = np.empty((rows, *spec.shape), dtype=spec.dtype)
    return buffers


def _bind(bind: Any, spec: TensorSpec, array: np.ndarray) -> None:
    bind(spec.file_name, "cpu", 0, array.dtype, list(array.shape), array.ctypes.data)


def _move_rows(content: np.ndarray, rows: np.ndarray) -> None:
    for place, row in enumerate(rows.tolist()):  # ascending, so nothing is overwritten
        if place != row:
            content[place] = content[row]
