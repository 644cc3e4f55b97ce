"""Segments as TensorRT engines: what crosses stays on the device, one gate an image comes back.

Everything has its address for life. A tensor that crosses between segments lies in memory that no
other uses while it lives (see compress.runtime.tensor_memory). One activation buffer, as large as
the hungriest engine needs, serves all, as they run one after another in one stream. Gates and
logits are written straight into host memory that is mapped into the device, so nothing is copied
back; the host waits once per segment (see compress.runtime.cuda_wait). Further outputs, which may
be large, stay on the device until they are asked for.

A segment with a number of images is put into the stream as it is the first time, and recorded as a
CUDA graph for all later times. NVIDIA says that a context must not change behind its graph, so
where the number of images may vary every graph has a context of its own; they share the
activations. So that these are few, segments run with some numbers of images alone (see
compress.runtime.row_sizes). The rows that are too many hold earlier images, or zeros: what a
segment takes it finds sound in every row, as a later one never has more rows than the one before.
Where TensorRT has one context a profile, as 8.5 does, segments run without graphs.
"""

import logging
import math
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from compress.errors import ToolchainError, UserInputError
from compress.runtime.backend import Backend
from compress.runtime.cuda import CudaRuntime, HostMemory, open_cuda
from compress.runtime.cuda_wait import Waiting, check_wait
from compress.runtime.engines import EngineFile, check_stamp, check_trust, read_engines
from compress.runtime.manifest import IMAGE, Manifest
from compress.runtime.row_sizes import row_sizes, size_for
from compress.runtime.tensor_memory import places_of
from compress.runtime.tensorrt_engine import (
    activation_bytes,
    check_engine,
    context_without_activations,
    import_tensorrt,
    load_engine,
    logger_of,
    shares_profiles,
)

__all__ = ["TensorRTBackend"]

ALIGNMENT = 256  # bytes, of every address that TensorRT takes

Move = Tuple[int, int, int]  # to row, from row, number of rows

log = logging.getLogger(__name__)


class TensorRTBackend(Backend):
    """Runs the engines of a bundle on device 0.

    Args:
        bundle: its folder, with engines.
        manifest: of the bundle, checked.
        trt: the module tensorrt or tensorrt_rtx; None imports the one that built the engines.
        cuda: the CUDA runtime; None opens that of this machine.
        use_graphs: record every segment as a CUDA graph.
        trust_engines: load engines that were not built here, too.
        wait: "spin", "yield" or "block": how the host waits for a segment.

    Raises:
        UserInputError: there are no engines, or they are damaged, or were built for another
            bundle, TensorRT or GPU, or by a stranger.
        ToolchainError: there is no CUDA or TensorRT, or one of them fails.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        *,
        trt: Any = None,
        cuda: Optional[CudaRuntime] = None,
        use_graphs: bool = True,
        trust_engines: bool = False,
        wait: str = "spin",
    ) -> None:
        self._how_to_wait = check_wait(wait)
        self.max_batch = manifest.batch[1]
        self._manifest = manifest
        self._segments = manifest.segments
        self._living = [manifest.living(i) for i in range(len(manifest.segments))]
        self._places = np.arange(0)  # of the images on their way: the row of every living tensor
        self._ran = 0  # the segment that ran last
        self._order = self._places  # and the places then
        self._is_copying = False  # the device may still read the staged images
        self._sizes = row_sizes(self.max_batch)
        self._shapes: Dict[int, int] = {}  # images for which a shared context is set
        self._launches: Dict[Tuple[int, int], Callable[[], None]] = {}
        self._records = use_graphs  # segments as graphs
        self._stream = 0
        self._closing = ExitStack()
        try:
            self._open(Path(bundle), trt, cuda, trust_engines)
        except BaseException:
            with suppress(ToolchainError):  # what went wrong first is what to tell
                self.close()
            raise

    def load(self, images: np.ndarray) -> None:
        """Take a batch (B, C, H, W) float32: it is copied, and begins to travel to the device.

        Raises:
            UserInputError: images of another size or type, or too many or none.
        """
        rows, shape = len(images), self._manifest.image.shape
        if images.shape[1:] != shape or not 0 < rows <= self.max_batch:
            raise UserInputError(
                f"images have the shape {images.shape}; expected up to {self.max_batch} of {shape}"
            )
        if images.dtype != np.float32:
            raise UserInputError(f"images are of type {images.dtype}; expected float32")
        if self._is_copying:
            self._synchronize()
        self._staged[:rows] = images
        size = rows * self._manifest.image.image_bytes
        self._cuda.copy_to_device(self._image, self._staging.address, size, self._stream)
        self._is_copying = True
        self._places = np.arange(rows)

    def run(self, segment: int) -> Optional[np.ndarray]:
        """Run a segment and wait for it; return its gates (B,), None of the last."""
        rows = size_for(self._sizes, len(self._places))
        launch = self._launches.get((segment, rows))
        if launch is None:
            self._launch_first(segment, rows)
        else:
            launch()
        self._synchronize()
        self._ran, self._order = segment, self._places
        if self._segments[segment].threshold is None:
            return None
        gates: np.ndarray = self._gates[self._places]  # a copy, in the order of the images
        return gates

    def logits(self) -> np.ndarray:
        """Return logits (B, K) of the segment just run."""
        logits: np.ndarray = self._logits[self._order]
        return logits

    def outputs(self) -> Dict[str, np.ndarray]:
        """Copy the further outputs (B, …) of the segment just run to the host."""
        rows, found = len(self._order), {}
        for name, (spec, pointer) in self._further.items():
            size = rows * spec.image_bytes
            self._cuda.copy_to_host(self._landing.address, pointer, size, self._stream)
            self._synchronize()
            content = self._landing.array[:size].view(spec.dtype)
            found[name] = content.reshape(rows, *spec.shape).copy()
        return found

    def keep(self, rows: np.ndarray) -> None:
        """Compact the living tensors of the batch to these rows, on the device."""
        self._places, moves = _compacted(self._places[rows])
        for spec in self._living[self._ran]:
            start, size = self._pointers[spec.name], spec.image_bytes
            for to, row, count in moves:
                to_pointer, pointer = start + to * size, start + row * size
                self._cuda.copy_on_device(to_pointer, pointer, count * size, self._stream)

    def close(self) -> None:
        """Wait for the device and give everything back; a second time does nothing."""
        closing, self._closing = self._closing, ExitStack()
        if self._stream:
            closing.callback(self._cuda.stream_synchronize, self._stream)
        self._stream = 0
        self._launches.clear()
        self._gates = self._logits = self._staged = np.empty(0)  # their memory goes
        closing.close()

    def _open(
        self, bundle: Path, trt: Any, cuda: Optional[CudaRuntime], trust_engines: bool
    ) -> None:
        self._cuda = open_cuda() if cuda is None else cuda
        # Before TensorRT: without CUDA its Runtime is a null object that crashes the interpreter.
        device = self._cuda.device_info()
        engines = read_engines(bundle, self._manifest)
        if not trust_engines:
            check_trust(engines, bundle)
        self._trt = import_tensorrt(engines.builder) if trt is None else trt
        check_stamp(
            engines,
            builder=self._trt.__name__,
            tensorrt_version=self._trt.__version__,
            device=device,
        )
        self._waiting = Waiting(self._cuda, self._how_to_wait)  # before CUDA is settled on a way
        self._closing.callback(self._waiting.close)
        self._stream = self._cuda.stream_create()
        self._closing.callback(self._cuda.stream_destroy, self._stream)
        self._load_engines(bundle, engines.segments)
        self._check_sharing()
        self._allocate()
        self._clear_images()
        self._contexts: List[Any] = []
        self._closing.callback(self._contexts.clear)
        for segment in range(len(self._segments)):
            self._new_context(segment)
        # Weights may have come over the legacy default stream, for which ours does not wait.
        self._cuda.device_synchronize()

    def _load_engines(self, bundle: Path, files: Tuple[EngineFile, ...]) -> None:
        runtimes = [self._trt.Runtime(logger_of(self._trt))]
        self._closing.callback(runtimes.clear)
        self._engines: List[Any] = []
        self._closing.callback(self._engines.clear)  # engines go before their runtime
        self._is_dynamic: List[bool] = []
        for file, segment in zip(files, self._segments):
            path = bundle / file.file
            engine = load_engine(self._trt, runtimes[0], path)
            self._engines.append(engine)
            is_dynamic = check_engine(self._trt, engine, segment, self._manifest.batch, path)
            self._is_dynamic.append(is_dynamic)

    def _check_sharing(self) -> None:
        """Leave graphs out where TensorRT has but one context a profile: asked, it logs errors."""
        if self._records and any(self._is_dynamic) and not shares_profiles(self._trt):
            log.info("segments run without CUDA graphs: this TensorRT has one context a profile")
            self._records = False

    def _clear_images(self) -> None:
        """Put zeros where images will be, so that a row that never held one is sound."""
        self._staged[:] = 0
        size = self.max_batch * self._manifest.image.image_bytes
        self._cuda.copy_to_device(self._image, self._staging.address, size, self._stream)

    def _allocate(self) -> None:
        self._activation_bytes = _aligned(max(map(activation_bytes, self._engines)))
        self._activations = self._malloc(self._activation_bytes)
        places = places_of(self._manifest)
        crossing = [self._malloc(self.max_batch * size) for size in places.image_bytes]
        self._image = self._malloc(self.max_batch * self._manifest.image.image_bytes)
        logits = (len(self._manifest.classes),)  # none of a detector
        self._staging, self._staged = self._mapped((self.max_batch, *self._manifest.image.shape))
        self._gate_memory, self._gates = self._mapped((self.max_batch,))
        self._logit_memory, self._logits = self._mapped((self.max_batch, *logits))
        self._allocate_further()
        self._pointers: Dict[str, int] = {  # of every tensor, by its name in the bundle
            IMAGE: self._image,
            "logits": self._logit_memory.pointer,
            "gate": self._gate_memory.pointer,
            **{name: pointer for name, (_, pointer) in self._further.items()},
            **{name: crossing[place] for name, place in places.of.items()},
        }

    def _allocate_further(self) -> None:
        """Give each further output memory on the device, and all of them one place on the host."""
        sizes = {s: self.max_batch * s.image_bytes for s in self._manifest.further_outputs}
        self._further = {spec.name: (spec, self._malloc(size)) for spec, size in sizes.items()}
        if sizes:
            self._landing = self._cuda.host_alloc(_aligned(max(sizes.values())))
            self._closing.callback(self._cuda.host_free, self._landing)

    def _malloc(self, size: int) -> int:
        pointer = self._cuda.malloc(_aligned(size))
        self._closing.callback(self._cuda.free, pointer)
        return pointer

    def _mapped(self, shape: Tuple[int, ...]) -> Tuple[HostMemory, np.ndarray]:
        """Return mapped host memory, and float32 in it."""
        size = 4 * math.prod(shape)
        memory = self._cuda.host_alloc(_aligned(size))
        self._closing.callback(self._cuda.host_free, memory)
        return memory, memory.array[:size].view(np.float32).reshape(shape)

    def _new_context(self, segment: int) -> Any:
        """Return a new context of a segment with all its addresses; it lives until `close`."""
        context = context_without_activations(self._trt, self._engines[segment])
        if context is None:
            raise ToolchainError(
                f"TensorRT made no context for segment {segment}; end other programs that use the "
                "GPU, or export for smaller batches"
            )
        self._contexts.append(context)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._activations, self._activation_bytes)
        else:
            context.device_memory = self._activations
        part = self._segments[segment]
        for spec in (*part.inputs, *part.outputs):
            name, pointer = spec.file_name, self._pointers[spec.name]
            _accepted(context.set_tensor_address(name, pointer), segment, f"the address of {name}")
        return context

    def _launch_first(self, segment: int, rows: int) -> None:
        """Put a segment into the stream, and find out how to do so from now on."""
        plain = partial(self._enqueue, segment, rows)
        self._launches[segment, rows] = plain
        if not self._records:
            plain()
            return
        try:
            self._launches[segment, rows] = self._recorded(segment, rows)
        except ToolchainError as err:
            reason = str(err)  # a log that kept the error would keep the context in its frames
            log.info("segments run without CUDA graphs from here on (%s)", reason)
            self._records = False
            plain()  # again, if need be: a segment does not touch what it takes

    def _recorded(self, segment: int, rows: int) -> Callable[[], None]:
        """Put a segment into the stream; return what launches its graph from now on."""
        context = self._contexts[segment]
        if self._is_dynamic[segment]:
            context = self._new_context(segment)
            self._set_rows(context, segment, rows)
        enqueue = partial(self._execute, context, segment)
        enqueue()  # a context settles in a first call, which must not be the recorded one
        graph = self._cuda.capture(self._stream, enqueue)
        self._closing.callback(self._cuda.graph_destroy, graph)
        return partial(self._cuda.graph_launch, graph, self._stream)

    def _enqueue(self, segment: int, rows: int) -> None:
        """Put a segment into the stream without a graph."""
        context = self._contexts[segment]
        if self._is_dynamic[segment] and self._shapes.get(segment) != rows:
            self._set_rows(context, segment, rows)
            self._shapes[segment] = rows
        self._execute(context, segment)

    def _set_rows(self, context: Any, segment: int, rows: int) -> None:
        for spec in self._segments[segment].inputs:
            accepted = context.set_input_shape(spec.file_name, (rows, *spec.shape))
            _accepted(accepted, segment, f"{rows} images")

    def _execute(self, context: Any, segment: int) -> None:
        _accepted(context.execute_async_v3(self._stream), segment, "to run")

    def _synchronize(self) -> None:
        self._waiting.wait(self._stream)
        self._is_copying = False


def _compacted(places: np.ndarray) -> Tuple[np.ndarray, List[Move]]:
    """Return where R images at these rows will lie, all within the first R rows, and the copies.

    Only images beyond the first R rows move, into rows that others left, so copies never overlap
    and are as few bytes as can be. The order of rows is free: the host reads gates by place. Of the
    places 1, 2, 3, 5 row 5 moves to row 0: they become 1, 2, 3, 0.
    """
    count = len(places)
    late = np.flatnonzero(places >= count)
    is_free = np.ones(count, dtype=bool)
    is_free[places[places < count]] = False
    free = np.flatnonzero(is_free)
    compacted = places.copy()
    compacted[late] = free
    moves: List[Move] = []
    for to, row in zip(free.tolist(), places[late].tolist()):
        first_to, first_row, length = moves[-1] if moves else (-1, -1, 0)
        if (to, row) == (first_to + length, first_row + length):
            moves[-1] = (first_to, first_row, length + 1)
        else:
            moves.append((to, row, 1))
    return compacted, moves


def _accepted(answer: bool, segment: int, what: str) -> None:
    if not answer:
        raise ToolchainError(
            f"TensorRT refused {what} of segment {segment}; its log says why (-v), and building "
            "the engines again with python -m compress.build_engines BUNDLE --force may help"
        )


def _aligned(size: int) -> int:
    return max(-(-size // ALIGNMENT), 1) * ALIGNMENT
