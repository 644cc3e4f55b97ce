"""Segments in ONNX Runtime: on the CPU, or on a GPU where its CUDA provider is installed.

Every tensor between segments lies in a buffer that is made once and bound by address, so a call
passes pointers and copies nothing. Thread pools do not spin: with one spinning pool per session,
each takes the cores from the segment that runs, and a chain of four costs 3 to 4 times the graph.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np

from compress.errors import ToolchainError
from compress.optional import require
from compress.runtime.backend import Backend
from compress.runtime.gather_model import gather_model
from compress.runtime.manifest import Manifest, Segment, TensorSpec

__all__ = ["OnnxRuntimeBackend"]


class OnnxRuntimeBackend(Backend):
    """Runs a bundle in ONNX Runtime.

    Args:
        bundle: its folder.
        manifest: of the bundle, checked.
        threads: inside an operation, on the CPU; None leaves it to ONNX Runtime.
        device: "cpu" or "cuda"; None takes "cuda" where the provider is present.

    Raises:
        ToolchainError: ONNX Runtime is missing, or cannot read a segment.
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
        available = self._ort.get_available_providers()
        self.device = device or ("cuda" if "CUDAExecutionProvider" in available else "cpu")
        self.max_batch = manifest.batch[1]
        self._segments = manifest.segments
        self._sessions = [self._open(str(bundle / s.file), threads) for s in manifest.segments]
        self._results = [_result_buffers(s, self.max_batch) for s in manifest.segments]
        self._hidden = [self._buffer(_hidden_bytes(manifest)) for _ in range(2)]
        self._gathers: Dict[int, Any] = {}
        self._bindings: Dict[Tuple[int, int, int], Any] = {}
        self._images = np.empty(0, dtype=np.float32)
        self._rows = 0  # images that are still on their way
        self._ran = 0  # the segment that ran last
        self._at = 0  # which of the two buffers holds the hidden states

    def load(self, images: np.ndarray) -> None:
        """Take a batch (B, C, H, W) float32; its memory is read when segment 0 runs."""
        self._images = images
        self._rows = len(images)
        self._at = 1  # so that segment 0 writes buffer 0

    def run(self, segment: int) -> Optional[np.ndarray]:
        """Run a segment; return its gates (B,), None of the last."""
        binding = self._binding(segment)
        if segment == 0:
            _bind(binding.bind_input, self._segments[0].inputs[0], self._images)
        self._sessions[segment].run_with_iobinding(binding)
        if self.device != "cpu":
            binding.synchronize_outputs()
        self._ran, self._at = segment, 1 - self._at
        gates = self._results[segment].get("gate")
        return None if gates is None else gates[: self._rows]

    def logits(self) -> np.ndarray:
        """Return logits (B, K) of the segment just run."""
        return self._results[self._ran]["logits"][: self._rows]

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
        self._bindings.clear()
        self._gathers.clear()
        self._sessions, self._hidden, self._results = [], [], []

    def _open(self, model: Any, threads: Optional[int]) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if self.device == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        try:
            return self._ort.InferenceSession(model, options, providers=providers)
        except Exception as err:  # ONNX Runtime has a class of its own per status code
            raise ToolchainError(
                f"ONNX Runtime {self._ort.__version__} cannot open {model!s:.200} ({err}); export "
                "the bundle for this version, or install a newer onnxruntime"
            ) from err

    def _buffer(self, size: int) -> Any:
        """Memory where the segments run: an array, or an OrtValue on the GPU."""
        if self.device == "cpu":
            return np.empty(size, dtype=np.uint8)
        words = -(-size // 4)
        return self._ort.OrtValue.ortvalue_from_shape_and_type([words], np.float32, self.device, 0)

    def _binding(self, segment: int) -> Any:
        key = (segment, self._rows, self._at)
        if key not in self._bindings:
            self._bindings[key] = self._bound(segment)
        return self._bindings[key]

    def _bound(self, segment: int) -> Any:
        """Bind everything but the image to its address, for as many images as there are now."""
        binding = self._sessions[segment].io_binding()
        if segment > 0:
            self._bind_hidden(binding.bind_input, self._segments[segment].inputs[0], self._at)
        for spec in self._segments[segment].outputs:
            if spec.name == "hidden":
                self._bind_hidden(binding.bind_output, spec, 1 - self._at)
            else:
                rows = self._results[segment][spec.name][: self._rows]
                _bind(binding.bind_output, spec, rows)
        return binding

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
            self._gathers[self._ran] = self._open(gather_model(spec.dtype, spec.shape), None)
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
