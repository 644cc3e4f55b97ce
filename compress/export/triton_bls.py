"""Early exit in NVIDIA Triton Inference Server: call segments, stop at the first gate that fires.

`write_triton` copies this very file into a model repository as `<name>/1/model.py`, where Triton's
Python backend runs it. It therefore stands alone: Python 3.8, numpy, and the server's own module.

Takes `image` (B, C, H, W); gives `logits` (B, K) of the exit where each image left, and `exit`
(B, 1) int32, the number of that exit, E for the final head. An image leaves behind segment i when
gate_i >= threshold_i; a gate that is not a number never fires. Images that left do not travel on.

Tensors are handed from segment to segment by name, where they lie, in device memory if the segments
run there; only gates, and logits of images that leave, are copied to the host. Each is kept until
the last segment that takes it has run. Where some images of a batch leave and others stay, the rows
that stay, of every tensor that is kept, go through the host.

Parameters of config.pbtxt:
    segments: names of the segment models, in order, with commas between them.
    takes: names of the tensors that each segment takes, with commas between them, segments apart
        by semicolons.
    gives: likewise those that each segment makes for later ones.
    thresholds: one an exit, or one for all, with commas between them. A request may bring a
        parameter of the same name, a text or a number, which holds for that request.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["TritonPythonModel"]

CUDA_RUNTIMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
DEVICE_TO_HOST = 2  # cudaMemcpyDeviceToHost
SIGNED, FLOATING = 0, 2  # codes of DLPack


class TritonPythonModel:
    """The name and the methods that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read segments and thresholds from the configuration; called once, by the server."""
        self._server: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"])["parameters"]
        self._segments = parameters["segments"]["string_value"].split(",")
        self._last = len(self._segments) - 1
        self._takes = _names(parameters["takes"].get("string_value", ""))
        self._gives = _names(parameters["gives"].get("string_value", ""))
        text = parameters["thresholds"].get("string_value", "")  # an empty text may be left out
        try:
            self._bars = _thresholds(text, self._last)
        except _RefusedError as err:
            raise self._server.TritonModelException(f"config.pbtxt: {err}") from err
        self._cuda = _cuda_runtime()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, with an error of its own where it failed."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        server = self._server
        try:
            bars = self._bars_of(request)
            image = server.get_input_tensor_by_name(request, "image")
            logits, exits = self._dispatch(image, bars)
        except _RefusedError as err:
            return server.InferenceResponse(error=self._error(err, "INVALID_ARG"))
        except (_FailedError, server.TritonModelException) as err:
            return server.InferenceResponse(error=self._error(err, "INTERNAL"))
        return server.InferenceResponse(
            output_tensors=[server.Tensor("logits", logits), server.Tensor("exit", exits)]
        )

    def _bars_of(self, request: Any) -> list[float]:
        # Servers before 23.x have no parameters of requests.
        read = getattr(request, "parameters", None)
        given = json.loads(read() or "{}") if read else {}
        return _thresholds(given["thresholds"], self._last) if "thresholds" in given else self._bars

    def _dispatch(self, image: Any, bars: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (B, K) float32 and exits (B, 1) int32 of a batch."""
        living = {"image": image}  # the server's tensors: they may lie in device memory
        alive: np.ndarray | None = None  # places of the images still on their way; None is all
        left: list[tuple[int, np.ndarray, np.ndarray]] = []  # segment, places, logits
        for segment, bar in enumerate([*bars, None]):
            outputs = self._call(segment, living, [] if bar is None else ["gate"])
            leaves = self._leaving(outputs, bar)
            rows = np.arange(len(leaves)) if alive is None else alive
            if leaves.any() or leaves.all():  # the latter of no images at all
                left.append((segment, rows[leaves], self._on_host(outputs["logits"])[leaves]))
            if leaves.all():
                break
            alive = rows[~leaves]
            living = self._kept({**living, **outputs}, segment, ~leaves)
        return _in_order(left)

    def _kept(self, tensors: dict[str, Any], segment: int, stays: np.ndarray) -> dict[str, Any]:
        """Return what later segments take, of the images that stay."""
        later = {name for takes in self._takes[segment + 1 :] for name in takes}
        kept = {name: tensor for name, tensor in tensors.items() if name in later}
        if stays.all():  # always so for one image
            return kept
        return {
            name: self._server.Tensor(name, np.ascontiguousarray(self._on_host(tensor)[stays]))
            for name, tensor in kept.items()
        }

    def _leaving(self, outputs: dict[str, Any], bar: float | None) -> np.ndarray:
        """Return (B,) bool; behind the final head every image leaves."""
        if bar is None:
            return np.ones(len(self._on_host(outputs["logits"])), dtype=bool)
        gates = self._on_host(outputs["gate"]).reshape(-1).astype(np.float64)
        leaves: np.ndarray = gates >= bar  # False for NaN
        return leaves

    def _call(self, segment: int, living: dict[str, Any], gate: list[str]) -> dict[str, Any]:
        """Run one segment model; return its outputs as the server's tensors, by name."""
        server, name = self._server, self._segments[segment]
        wanted = [*self._gives[segment], "logits", *gate]
        request = server.InferenceRequest(
            model_name=name,
            requested_output_names=wanted,
            inputs=[living[each] for each in self._takes[segment]],
            **self._placement(),
        )
        response = request.exec()
        if response.has_error():
            raise _FailedError(f"segment {name}: {response.error().message()}")
        outputs = {each: server.get_output_tensor_by_name(response, each) for each in wanted}
        missing = [each for each, found in outputs.items() if found is None]
        if missing:
            raise _FailedError(f"segment {name} gave no {' and no '.join(missing)}")
        return outputs

    def _placement(self) -> dict[str, Any]:
        """Ask for host memory where device memory could not be read; else leave tensors alone."""
        server = self._server
        if self._cuda is not None or not hasattr(server, "PreferredMemory"):
            return {}
        return {"preferred_memory": server.PreferredMemory(server.TRITONSERVER_MEMORY_CPU, 0)}

    def _on_host(self, tensor: Any) -> np.ndarray:
        if tensor.is_cpu():
            array: np.ndarray = tensor.as_numpy()
            return array
        if self._cuda is None:
            raise _FailedError(f"{tensor.name()} lies in device memory, and no libcudart was found")
        return _copied_from_device(self._cuda, tensor.to_dlpack())

    def _error(self, err: Exception, kind: str) -> Any:
        code = getattr(self._server.TritonError, kind, None)  # servers before 23.09 have no codes
        return self._server.TritonError(str(err), *([] if code is None else [code]))


class _RefusedError(Exception):
    """The request, or the configuration, asks for what cannot be."""


class _FailedError(Exception):
    """A segment, or the way to what it gave, failed."""


class _DeviceTensor(ctypes.Structure):
    """DLTensor, as the DLPack standard lays it out."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _copied_from_device(cuda: Any, capsule: Any) -> np.ndarray:
    """Copy a tensor to the host.

    Its work is done when Triton hands it over. The server's image has neither cupy nor torch,
    hence the call of the CUDA runtime itself.
    """
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    source = _DeviceTensor.from_address(read(capsule, b"dltensor"))
    shape = [source.shape[axis] for axis in range(source.ndim)]
    array = np.empty(shape, dtype=_dtype(source))
    status = cuda.cudaMemcpy(
        ctypes.c_void_p(array.ctypes.data),
        ctypes.c_void_p((source.data or 0) + source.byte_offset),
        ctypes.c_size_t(array.nbytes),
        DEVICE_TO_HOST,
    )
    if status:
        raise _FailedError(f"copying {shape} from device memory failed with CUDA error {status}")
    return array


def _dtype(source: _DeviceTensor) -> np.dtype:
    """Return the type of a tensor; servers before 24.x call truth values whole bytes."""
    kinds = {SIGNED: "i", FLOATING: "f"}
    if source.code not in kinds:  # no other type without a sign crosses
        return np.dtype(np.bool_)
    return np.dtype(f"{kinds[source.code]}{source.bits // 8}")


def _names(text: str) -> list[list[str]]:
    """Return the names of each segment, of "image;hidden_0,hidden_1"."""
    return [[name for name in part.split(",") if name] for part in text.split(";")]


def _in_order(
    left: list[tuple[int, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (B, K) and exits (B, 1), in the order in which the images came."""
    order = np.argsort(np.concatenate([rows for _, rows, _ in left]))
    logits = np.concatenate([part for _, _, part in left])
    exits = np.concatenate([np.full(len(rows), segment) for segment, rows, _ in left])
    return logits[order], exits[order].astype(np.int32)[:, None]


def _cuda_runtime() -> Any:
    """Return the CUDA runtime, or None where there is none."""
    for name in CUDA_RUNTIMES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def _thresholds(given: str | float, exits: int) -> list[float]:
    """Return one threshold an exit, from a number or from a text with commas."""
    texts = [text for text in str(given).split(",") if text.strip()]
    try:
        bars = [float(text) for text in texts]
    except ValueError:
        raise _RefusedError(
            f"thresholds are {given!r}; expected numbers with commas between"
        ) from None
    if len(bars) == 1:
        bars *= exits
    if len(bars) != exits:
        raise _RefusedError(f"{len(bars)} thresholds for {exits} exits; expected one each, or one")
    for bar in bars:
        if not 0 <= bar <= 1:  # NaN fails this too
            raise _RefusedError(f"a threshold is {bar}; expected 0 <= threshold <= 1")
    return bars
