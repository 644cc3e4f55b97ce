"""The CUDA runtime through ctypes: the three dozen calls that running engines takes, each checked.

`libcudart` of CUDA 11.4 (JetPack 5) to 13 is loaded from where JetPack, a CUDA toolkit or NVIDIA's
wheels put it. Pointers, streams and graphs are plain whole numbers, as TensorRT takes them.
"""

import ctypes
import ctypes.util
import sys
from dataclasses import dataclass
from glob import glob
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from compress.errors import ToolchainError

__all__ = ["CudaRuntime", "DeviceInfo", "HostMemory", "open_cuda", "probe_cuda"]

LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
DRIVERS = ("libcuda.so.1", "libcuda.so")
FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/lib", "/usr/local/cuda*/targets/*/lib")
WHEELS = ("nvidia/cuda_runtime/lib", "nvidia/cu*/lib")

MAJOR, MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, …Minor
CLOCK, MULTIPROCESSORS = 13, 16  # cudaDevAttrClockRate (kHz), …MultiProcessorCount
NON_BLOCKING = 1  # cudaStreamNonBlocking: no hidden waits on the legacy default stream
MAPPED = 2  # cudaHostAllocMapped
TO_DEVICE, TO_HOST, WITHIN_DEVICE = 1, 2, 3  # as cudaMemcpyKind numbers them
THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: other threads may use CUDA meanwhile
OUT_OF_MEMORY, NOT_READY = 2, 600

HANDLE, OUT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
NUMBER = ctypes.POINTER(ctypes.c_int)
SIGNATURES: Dict[str, Tuple[Any, ...]] = {
    "cudaGetDeviceCount": (NUMBER,),
    "cudaDeviceGetAttribute": (NUMBER, ctypes.c_int, ctypes.c_int),
    "cudaDeviceSynchronize": (),
    "cudaGetLastError": (),
    "cudaSetDeviceFlags": (ctypes.c_uint,),
    "cudaEventCreateWithFlags": (OUT, ctypes.c_uint),
    "cudaEventRecord": (HANDLE, HANDLE),
    "cudaEventQuery": (HANDLE,),
    "cudaEventSynchronize": (HANDLE,),
    "cudaEventDestroy": (HANDLE,),
    "cudaStreamCreateWithFlags": (OUT, ctypes.c_uint),
    "cudaStreamSynchronize": (HANDLE,),
    "cudaStreamDestroy": (HANDLE,),
    "cudaMalloc": (OUT, ctypes.c_size_t),
    "cudaFree": (HANDLE,),
    "cudaHostAlloc": (OUT, ctypes.c_size_t, ctypes.c_uint),
    "cudaHostGetDevicePointer": (OUT, HANDLE, ctypes.c_uint),
    "cudaFreeHost": (HANDLE,),
    "cudaMemcpyAsync": (HANDLE, HANDLE, ctypes.c_size_t, ctypes.c_int, HANDLE),
    "cudaStreamBeginCapture": (HANDLE, ctypes.c_int),
    "cudaStreamEndCapture": (HANDLE, OUT),
    "cudaGraphLaunch": (HANDLE, HANDLE),
    "cudaGraphDestroy": (HANDLE,),
    "cudaGraphExecDestroy": (HANDLE,),
}
WITH_FLAGS = (OUT, HANDLE, ctypes.c_ulonglong)
# CUDA 11 has five parameters here, CUDA 12 the three of WITH_FLAGS; zeros mean the same in both.
WITHOUT_FLAGS = (OUT, HANDLE, HANDLE, HANDLE, ctypes.c_size_t)


@dataclass(frozen=True)
class DeviceInfo:
    """The GPU that CUDA uses.

    Attributes:
        name: as the driver calls it, such as "Orin".
        compute_capability: such as "8.7".
        multiprocessors: that the power mode leaves on: every Orin is "Orin" and 8.7, but has 16
            (AGX Orin) or 8 (Orin Nano) of them. None where it is not told, as the next two.
        memory_gib: of the device; on a Jetson that of the whole board.
        clock_mhz: the ceiling of its clock, in this power mode.
    """

    name: str
    compute_capability: str
    multiprocessors: Optional[int] = None
    memory_gib: Optional[float] = None
    clock_mhz: Optional[int] = None


@dataclass(frozen=True, eq=False)
class HostMemory:
    """Pinned host memory that the device reads and writes too.

    Attributes:
        address: where the host finds it, for copies and for freeing.
        pointer: where kernels find it.
        array: its bytes, uint8; not to be touched once it is freed.
    """

    address: int
    pointer: int
    array: np.ndarray


class CudaRuntime:
    """One loaded CUDA runtime and its device 0.

    Every call raises a ToolchainError with CUDA's own words when it fails.

    Args:
        library: libcudart, loaded; anything with the same functions.
        driver: libcuda, loaded; None loads it when the device's name is asked for.

    Raises:
        ToolchainError: the library lacks a function.
    """

    def __init__(self, library: Any, driver: Any = None) -> None:
        self._driver = driver
        try:
            self._functions = {
                name: _declared(library, name, types) for name, types in SIGNATURES.items()
            }
            self._describe = _declared(library, "cudaGetErrorString", (ctypes.c_int,))
        except AttributeError as err:
            raise ToolchainError(
                f"the CUDA runtime library lacks a function ({err}); expected CUDA 11.4 or newer"
            ) from err
        self._describe.restype = ctypes.c_char_p
        self._instantiate = _instantiation(library)

    def device_info(self) -> DeviceInfo:
        """Return what the device is.

        Raises:
            ToolchainError: there is no driver that fits, or no device.
        """
        count = ctypes.c_int()
        code = self._functions["cudaGetDeviceCount"](ctypes.byref(count))
        if code != 0 or count.value < 1:
            raise _no_device(self._text(code) if code else "it counts 0 devices")
        capability = f"{self._attribute(MAJOR)}.{self._attribute(MINOR)}"
        name, memory = _told_by_driver(self._driver)
        return DeviceInfo(
            name=name,
            compute_capability=capability,
            multiprocessors=self._attribute(MULTIPROCESSORS),
            memory_gib=None if memory is None else round(memory / 2**30, 1),
            clock_mhz=self._attribute(CLOCK) // 1000 or None,  # some drivers tell 0
        )

    def device_synchronize(self) -> None:
        """Wait for everything that the device was asked to do, in every stream."""
        self._call("cudaDeviceSynchronize")

    def set_schedule(self, flag: int) -> None:
        """Say how the host waits for the device: 1 spins, 2 yields, 4 blocks."""
        self._call("cudaSetDeviceFlags", flag)

    def event_create(self, flags: int) -> int:
        """Return a new event, which is done until it is recorded."""
        return self._made("cudaEventCreateWithFlags", flags)

    def event_record(self, event: int, stream: int) -> None:
        """Put an event into the stream; it is done once everything before it is."""
        self._call("cudaEventRecord", event, stream)

    def event_is_done(self, event: int) -> bool:
        """Return at once whether everything before the event is done."""
        code = self._functions["cudaEventQuery"](event)
        if code == NOT_READY:
            return False
        self._check("cudaEventQuery", code)
        return True

    def event_synchronize(self, event: int) -> None:
        """Wait for everything before the event."""
        self._call("cudaEventSynchronize", event)

    def event_destroy(self, event: int) -> None:
        """Give an event back."""
        self._call("cudaEventDestroy", event)

    def forget_error(self) -> None:
        """Take back the last error that CUDA noted for others to ask for."""
        self._functions["cudaGetLastError"]()

    def stream_create(self) -> int:
        """Return a new stream, which does not wait for the legacy default stream."""
        return self._made("cudaStreamCreateWithFlags", NON_BLOCKING)

    def stream_synchronize(self, stream: int) -> None:
        """Wait for everything that was put into the stream."""
        self._call("cudaStreamSynchronize", stream)

    def stream_destroy(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", stream)

    def malloc(self, size: int) -> int:
        """Return the pointer to `size` bytes on the device, aligned to 256 or better."""
        return self._made("cudaMalloc", size)

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", pointer)

    def host_alloc(self, size: int) -> HostMemory:
        """Return `size` bytes of pinned, mapped host memory."""
        address = self._made("cudaHostAlloc", size, MAPPED)
        try:
            pointer = self._made("cudaHostGetDevicePointer", address, 0)
        except ToolchainError:
            self._call("cudaFreeHost", address)
            raise
        content = (ctypes.c_uint8 * size).from_address(address)
        return HostMemory(address, pointer, np.ctypeslib.as_array(content))

    def host_free(self, memory: HostMemory) -> None:
        """Give pinned host memory back; its array is dead from then on."""
        self._call("cudaFreeHost", memory.address)

    def copy_to_device(self, to: int, address: int, size: int, stream: int) -> None:
        """Put a copy of pinned host memory into the stream; leave it alone until that is done."""
        self._call("cudaMemcpyAsync", to, address, size, TO_DEVICE, stream)

    def copy_to_host(self, address: int, pointer: int, size: int, stream: int) -> None:
        """Put a copy into pinned host memory into the stream; it is there once that is done."""
        self._call("cudaMemcpyAsync", address, pointer, size, TO_HOST, stream)

    def copy_on_device(self, to: int, pointer: int, size: int, stream: int) -> None:
        """Put a copy within device memory into the stream. The two must not overlap."""
        self._call("cudaMemcpyAsync", to, pointer, size, WITHIN_DEVICE, stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Return the executable graph of what `enqueue` puts into the stream; it is not run.

        Raises:
            ToolchainError: something in it cannot be captured; the stream is usable again.
        """
        self._call("cudaStreamBeginCapture", stream, THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture(stream)
            raise
        graph = self._made_by_capture(stream)
        try:
            return self._instantiated(graph)
        finally:
            self._call("cudaGraphDestroy", graph)

    def graph_launch(self, graph: int, stream: int) -> None:
        """Put an executable graph into the stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def graph_destroy(self, graph: int) -> None:
        """Give an executable graph back."""
        self._call("cudaGraphExecDestroy", graph)

    def _attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
        return value.value

    def _made_by_capture(self, stream: int) -> int:
        graph = ctypes.c_void_p()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        return _found(graph, "cudaStreamEndCapture")

    def _abandon_capture(self, stream: int) -> None:
        """End a capture that went wrong: a stream left capturing refuses everything else."""
        try:
            graph = self._made_by_capture(stream)
        except ToolchainError:  # a broken capture is ended by this very error
            return
        self._call("cudaGraphDestroy", graph)

    def _instantiated(self, graph: int) -> int:
        made = ctypes.c_void_p()
        function, rest = self._instantiate
        self._check("cudaGraphInstantiate", function(ctypes.byref(made), graph, *rest))
        return _found(made, "cudaGraphInstantiate")

    def _made(self, name: str, *arguments: int) -> int:
        """Call a function whose first parameter is where it puts what it made."""
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return _found(made, name)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, self._functions[name](*arguments))

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        self.forget_error()  # else TensorRT's next check would meet it
        advice = "check the GPU and its driver"
        if code == OUT_OF_MEMORY:
            advice = "end other programs that use the GPU, or export for smaller batches"
        raise ToolchainError(f"{name} failed ({self._text(code)}); {advice}")

    def _text(self, code: int) -> str:
        words: bytes = self._describe(code) or b"unknown"
        return f"CUDA error {code}: {words.decode(errors='replace')}"


def open_cuda() -> CudaRuntime:
    """Return the first CUDA runtime of this machine that finds a device.

    A runtime newer than the driver finds none, while an older one beside it may.

    Raises:
        ToolchainError: there is no CUDA runtime library, no driver that fits, or no device.
    """
    reasons: List[ToolchainError] = []
    for library in map(_loaded, _candidates()):
        runtime = None if library is None else _usable(library, reasons)
        if runtime is not None:
            return runtime
    if reasons:
        raise reasons[0]
    raise ToolchainError(
        "no CUDA runtime library (libcudart.so) was found; install the CUDA runtime of JetPack or "
        "of NVIDIA's toolkit, or use the onnxruntime backend"
    )


def probe_cuda() -> DeviceInfo:
    """Return the device that CUDA would use here.

    Raises:
        ToolchainError: there is no CUDA runtime library, no driver that fits, or no device.
    """
    return open_cuda().device_info()


def _usable(library: Any, reasons: List[ToolchainError]) -> Optional[CudaRuntime]:
    """Return the runtime if it finds a device, else note why not."""
    try:
        runtime = CudaRuntime(library)
        runtime.device_info()
    except ToolchainError as err:
        reasons.append(err)
        return None
    return runtime


def _loaded(library: str) -> Any:
    """Return a shared library, None where it cannot be loaded."""
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None


def _candidates() -> Iterator[str]:
    """Yield names and paths of libcudart, the linker's own choice first."""
    yield from LIBRARIES
    named = ctypes.util.find_library("cudart")
    if named is not None:
        yield named
    wheels = [f"{entry}/{folder}" for entry in sys.path if entry for folder in WHEELS]
    for folder in (*FOLDERS, *wheels):
        yield from sorted(glob(f"{folder}/libcudart.so*"), reverse=True)


def _declared(library: Any, name: str, types: Tuple[Any, ...]) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = list(types), ctypes.c_int
    return function


def _instantiation(library: Any) -> Tuple[Any, List[Optional[int]]]:
    """Return the function that instantiates a graph, and its arguments after the graph."""
    try:
        return _declared(library, "cudaGraphInstantiateWithFlags", WITH_FLAGS), [0]
    except AttributeError:
        return _declared(library, "cudaGraphInstantiate", WITHOUT_FLAGS), [None, None, 0]


def _found(handle: ctypes.c_void_p, name: str) -> int:
    if not handle.value:
        raise ToolchainError(f"{name} gave nothing; check the GPU and its driver")
    return handle.value


def _told_by_driver(driver: Any) -> Tuple[str, Optional[int]]:
    """Return name and bytes of memory: the runtime has them in a struct that differs by version.

    The driver tells the memory without a context, which would take a part of it.
    """
    if driver is None:
        driver = next(filter(None, map(_loaded, DRIVERS)), None)
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if (
        driver is None
        or driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
    ):
        raise _no_device("its driver library (libcuda.so.1) does not tell the device's name")
    size = ctypes.c_size_t()
    told = getattr(driver, "cuDeviceTotalMem_v2", None)
    has_size = told is not None and told(ctypes.byref(size), device) == 0
    return name.value.decode(errors="replace"), size.value if has_size else None


def _no_device(reason: str) -> ToolchainError:
    return ToolchainError(
        f"CUDA finds no usable GPU ({reason}); install a driver that fits the CUDA runtime, or use "
        "the onnxruntime backend"
    )
