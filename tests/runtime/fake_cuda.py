"""A CUDA runtime that computes in host memory and notes every misuse.

It is a table of C functions, so that the ctypes declarations of the code under test are tested too;
nothing here looks at them. Work put into a stream is done as late as CUDA may do it: when the
stream is waited for. `FakeDevice.faults` must be empty at the end.
"""

import ctypes
import gc
import re
import weakref
from types import SimpleNamespace

import numpy as np

P, OUT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
INT, UINT, SIZE = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
PROTOTYPES = {  # of cuda_runtime_api.h
    "cudaGetDeviceCount": (ctypes.POINTER(INT),),
    "cudaDeviceGetAttribute": (ctypes.POINTER(INT), INT, INT),
    "cudaDeviceSynchronize": (),
    "cudaGetLastError": (),
    "cudaSetDeviceFlags": (UINT,),
    "cudaEventCreateWithFlags": (OUT, UINT),
    "cudaEventRecord": (P, P),
    "cudaEventQuery": (P,),
    "cudaEventSynchronize": (P,),
    "cudaEventDestroy": (P,),
    "cudaStreamCreateWithFlags": (OUT, UINT),
    "cudaStreamSynchronize": (P,),
    "cudaStreamDestroy": (P,),
    "cudaMalloc": (OUT, SIZE),
    "cudaFree": (P,),
    "cudaHostAlloc": (OUT, SIZE, UINT),
    "cudaHostGetDevicePointer": (OUT, P, UINT),
    "cudaFreeHost": (P,),
    "cudaMemcpyAsync": (P, P, SIZE, INT, P),
    "cudaStreamBeginCapture": (P, INT),
    "cudaStreamEndCapture": (P, OUT),
    "cudaGraphInstantiate": (OUT, P, P, P, SIZE),
    "cudaGraphInstantiateWithFlags": (OUT, P, ctypes.c_ulonglong),
    "cudaGraphLaunch": (P, P),
    "cudaGraphDestroy": (P,),
    "cudaGraphExecDestroy": (P,),
}
TEXTS = {
    code: ctypes.create_string_buffer(text)
    for code, text in (
        (1, b"invalid argument"),
        (2, b"out of memory"),
        (35, b"driver too old"),
        (600, b"device not ready"),
        (901, b"capture broke"),
    )
}
INVALID, NO_MEMORY, DRIVER_TOO_OLD, BROKEN_CAPTURE, BROKEN_FAKE = 1, 2, 35, 901, 999
NOT_READY = 600
POLLS = 2  # of an event that is not done yet
MAPPED, NON_BLOCKING = 2, 1
GUARD = 1 << 20  # between allocations, so that a wrong offset falls outside


class Block:
    """An allocation: its bytes, and what the device and the host call it."""

    def __init__(self, pointer, size, address=None):
        self.pointer, self.size, self.address = pointer, size, address
        self.data = np.full(size, 0xFF, dtype=np.uint8)  # NaN as any float
        self.is_mapped_out = False


class FakeDevice:
    """Memory, streams and graphs; `library` and `driver` are what ctypes would have loaded.

    Attributes:
        faults: every misuse, in words.
        log: names of the CUDA calls, and what TensorRT was asked.
        fail_at: number of the CUDA call that fails for want of memory, counted from 1; calls that
            give something back are not counted.
    """

    def __init__(self, *, devices=1, without=(), fail_at=None):
        self.faults, self.log, self.calls = [], [], 0
        self.devices, self.fail_at = devices, fail_at
        self.is_probed = False
        self.last_error = 0
        self.blocks, self.streams, self.graphs, self.executables = {}, {}, {}, {}
        self.events = {}  # handle: the EventMark that was recorded last, None of a new one
        self.schedule = None  # of cudaSetDeviceFlags
        self.recording = {}  # stream: operations
        self.next_handle = 0x7F00_0000_0000  # too long for a C int
        self.writers = {}  # pointer: segment or "image" that wrote there last
        self.alive = weakref.WeakSet()  # TensorRT's objects
        self.graveyard = []  # freed memory stays readable, as poison
        self._functions = {
            name: ctypes.CFUNCTYPE(INT, *types)(self._guarded(name))
            for name, types in PROTOTYPES.items()
            if name not in without
        }
        text = ctypes.CFUNCTYPE(P, INT)(
            lambda code: ctypes.addressof(TEXTS[code]) if code in TEXTS else None
        )
        self.library = SimpleNamespace(**self._functions, cudaGetErrorString=text)
        self.driver = self._driver()

    def fault(self, text):
        self.faults.append(text)
        return INVALID

    def count(self, name):
        return self.log.count(name)

    def leaks(self):
        if len(self.alive):
            gc.collect()  # some may be part of a cycle, and dead
        held = {
            "memory": [hex(block) for block in self.blocks],
            "streams": list(self.streams),
            "events": list(self.events),
            "graphs": list(self.graphs),
            "executable graphs": list(self.executables),
            "TensorRT objects": [type(each).__name__ for each in self.alive],
        }
        return {what: which for what, which in held.items() if which}

    def bytes_at(self, pointer, size, why):
        """Return device memory as an array; None, with a fault, where there is no such memory."""
        for block in self.blocks.values():
            if block.pointer <= pointer and pointer + size <= block.pointer + block.size:
                return block.data[pointer - block.pointer :][:size]
        self.fault(f"{why} uses {size} bytes at {pointer:#x}, which are not the device's")
        return None

    def pinned_at(self, address, size, why):
        """Return pinned host memory as an array; None, with a fault, where there is none."""
        for block in self.blocks.values():
            offset = address - (block.address or address + 1)
            if 0 <= offset <= block.size - size:
                return block.data[offset:][:size]
        self.fault(f"{why} {address:#x}, which is not pinned host memory")
        return None

    def enqueue(self, stream, operation):
        """Put an operation into a stream, or into the graph that records it."""
        if stream in self.recording:
            self.recording[stream].append(operation)
        elif stream in self.streams:
            operation.announce()
            self.streams[stream].append(operation)
        else:
            return self.fault(f"there is no stream {stream}")
        return 0

    def _guarded(self, name):
        method = getattr(self, re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name[4:]))

        def call(*arguments):
            try:
                self.log.append(name)
                code = self._failure(name, arguments) or method(*arguments)
                if name != "cudaGetLastError":
                    self.last_error = code or self.last_error
                return code
            except BaseException as err:  # else ctypes would print it and go on
                self.fault(f"{name} broke the fake: {err!r}")
                return BROKEN_FAKE

        return call

    def _failure(self, name, arguments):
        """Return the error of the call whose turn it is to fail."""
        if any(word in name for word in ("Free", "Destroy", "LastError")):
            return 0
        self.calls += 1
        if self.calls != self.fail_at:
            return 0
        if name == "cudaStreamEndCapture":  # it ends the capture in any case
            self.recording.pop(arguments[0], None)
        return NO_MEMORY

    def _driver(self):
        def name(text, size, device):
            ctypes.memmove(text, b"Fake GPU\0", 9)
            return 0 if size == 256 and device == 7 else INVALID

        def device(out, ordinal):
            out[0] = 7
            return ordinal

        def memory(out, device):
            out[0] = 32_000_000_000
            return 0 if device == 7 else INVALID

        number = ctypes.POINTER(INT)
        return SimpleNamespace(
            cuInit=ctypes.CFUNCTYPE(INT, UINT)(lambda flags: flags),
            cuDeviceGet=ctypes.CFUNCTYPE(INT, number, INT)(device),
            cuDeviceTotalMem_v2=ctypes.CFUNCTYPE(INT, ctypes.POINTER(SIZE), INT)(memory),
            cuDeviceGetName=ctypes.CFUNCTYPE(INT, ctypes.POINTER(ctypes.c_char), INT, INT)(name),
        )

    def _handle(self):
        self.next_handle += GUARD
        return self.next_handle

    def _is_forbidden_in_capture(self, what):
        """Whether something records; what was asked then breaks the recording."""
        if not self.recording:
            return False
        for stream in self.recording:
            self.recording[stream] = None
        self.fault(f"{what} while a stream is captured")
        return True

    def _get_device_count(self, out):
        out[0] = max(self.devices, 0)
        if self.devices < 0:
            return DRIVER_TOO_OLD
        self.is_probed = self.devices > 0
        return 0

    def _device_get_attribute(self, out, attribute, device):
        out[0] = {75: 8, 76: 7, 16: 14, 13: 1_300_500}.get(attribute, -1)
        return device

    def _get_last_error(self):
        code, self.last_error = self.last_error, 0
        return code

    def _set_device_flags(self, flags):
        if self.streams or self.events or self.blocks:
            return self.fault("a schedule is set once CUDA is settled on one")
        self.schedule = flags
        return 0

    def _event_create_with_flags(self, out, flags):
        if not flags & 2 or flags & ~3:
            return self.fault(f"an event with flags {flags}, which takes the time")
        out[0] = self._handle()
        self.events[out[0]] = None
        return 0

    def _event_record(self, event, stream):
        if event not in self.events or stream in self.recording:
            return self.fault(f"event {event} is recorded, and not there or part of a graph")
        self.events[event] = EventMark(stream)
        return self.enqueue(stream, self.events[event])

    def _event_query(self, event):
        if self._is_forbidden_in_capture("asking for an event"):
            return BROKEN_CAPTURE
        if event not in self.events:
            return self.fault(f"event {event} is asked for, and not there")
        mark = self.events[event]
        if mark is None or mark.is_done:
            return 0
        mark.polls += 1
        return NOT_READY if mark.polls <= POLLS else self._run_until(mark)

    def _event_synchronize(self, event):
        if self._is_forbidden_in_capture("waiting"):
            return BROKEN_CAPTURE
        if event not in self.events:
            return self.fault(f"waiting for event {event}, which is not there")
        mark = self.events[event]
        return 0 if mark is None or mark.is_done else self._run_until(mark)

    def _event_destroy(self, event):
        if event not in self.events:
            return self.fault(f"no event {event} to be destroyed")
        del self.events[event]
        return 0

    def _run_until(self, mark):
        operations = self.streams[mark.stream]
        while not mark.is_done:
            operations.pop(0).execute()
        return 0

    def _device_synchronize(self):
        return max((self._stream_synchronize(stream) for stream in self.streams), default=0)

    def _stream_create_with_flags(self, out, flags):
        if flags != NON_BLOCKING:
            return self.fault("a stream that waits for the default stream")
        out[0] = self._handle()
        self.streams[out[0]] = []
        return 0

    def _stream_synchronize(self, stream):
        if self._is_forbidden_in_capture("waiting"):
            return BROKEN_CAPTURE
        if stream not in self.streams:
            return self.fault(f"waiting for stream {stream}, which is not there")
        operations, self.streams[stream] = self.streams[stream], []
        for operation in operations:
            operation.execute()
        return 0

    def _stream_destroy(self, stream):
        if self.streams.pop(stream, None) is None:
            return self.fault(f"stream {stream} is destroyed, and not there or not done")
        return 0

    def _malloc(self, out, size):
        if self._is_forbidden_in_capture("cudaMalloc"):
            return BROKEN_CAPTURE
        if size < 1:
            return self.fault("cudaMalloc of nothing")
        out[0] = self._handle()
        self.blocks[out[0]] = Block(out[0], size)
        return 0

    def _free(self, pointer):
        return self._given_back(pointer, "cudaFree", is_host=False)

    def _host_alloc(self, out, size, flags):
        if self._is_forbidden_in_capture("cudaHostAlloc"):
            return BROKEN_CAPTURE
        if flags & MAPPED == 0 or size < 1:
            return self.fault(f"cudaHostAlloc of {size} bytes with flags {flags}")
        block = Block(self._handle(), size)
        block.address = block.data.ctypes.data
        out[0] = block.address
        self.blocks[block.address] = block
        return 0

    def _host_get_device_pointer(self, out, address, flags):
        if address not in self.blocks or flags:
            return self.fault(f"no mapped memory at {address}")
        self.blocks[address].is_mapped_out = True
        out[0] = self.blocks[address].pointer
        return 0

    def _free_host(self, address):
        return self._given_back(address, "cudaFreeHost", is_host=True)

    def _given_back(self, key, name, *, is_host):
        block = self.blocks.get(key)
        if block is None or (block.address is not None) != is_host:
            return self.fault(f"{name} of {key:#x}, which is not allocated so")
        if any(self.streams.values()):
            self.fault(f"{name} while a stream has work to do")
        del self.blocks[key]
        block.data[:] = 0xFF
        self.graveyard.append(block)
        return 0

    def _memcpy_async(self, to, source, size, kind, stream):
        copy = {1: CopyIn, 2: CopyOut, 3: CopyWithin}.get(kind)
        if copy is None:
            return self.fault(f"a copy of kind {kind}")
        return self.enqueue(stream, copy(self, to, source, size))

    def _stream_begin_capture(self, stream, mode):
        if stream not in self.streams or stream in self.recording or mode not in (1, 2):
            return self.fault(f"capture of stream {stream} in mode {mode}")
        self.recording[stream] = []
        return 0

    def _stream_end_capture(self, stream, out):
        if stream not in self.recording:
            return self.fault("the end of a capture that never began")
        operations = self.recording.pop(stream)
        if operations is None:
            out[0] = None
            return BROKEN_CAPTURE
        out[0] = self._handle()
        self.graphs[out[0]] = operations
        return 0

    def _graph_instantiate(self, out, graph, node, text, size):
        return self._graph_instantiate_with_flags(out, graph, node or text or size)

    def _graph_instantiate_with_flags(self, out, graph, flags):
        if graph not in self.graphs or flags:
            return self.fault(f"graph {graph} is instantiated with flags {flags}")
        out[0] = self._handle()
        self.executables[out[0]] = self.graphs[graph]
        return 0

    def _graph_launch(self, executable, stream):
        if executable not in self.executables or stream in self.recording:
            return self.fault(f"launch of graph {executable}, which is not there")
        return max((self.enqueue(stream, each) for each in self.executables[executable]), default=0)

    def _graph_destroy(self, graph):
        return 0 if self.graphs.pop(graph, None) is not None else self.fault("no such graph")

    def _graph_exec_destroy(self, executable):
        if any(self.streams.values()):
            self.fault("a graph is destroyed while a stream has work to do")
        if self.executables.pop(executable, None) is None:
            return self.fault("no such executable graph")
        return 0


class EventMark:
    """The place of an event in a stream."""

    def __init__(self, stream):
        self.stream, self.polls, self.is_done = stream, 0, False

    def announce(self):
        pass

    def execute(self):
        self.is_done = True


class CopyIn:
    """From pinned host memory to the device."""

    def __init__(self, device, to, address, size):
        self.device, self.to, self.address, self.size = device, to, address, size

    def announce(self):
        self.source = self.device.pinned_at(self.address, self.size, "a copy from")
        if self.source is not None:
            self.seen = self.source.tobytes()

    def execute(self):
        target = self.device.bytes_at(self.to, self.size, "a copy to the device")
        if target is None or self.source is None:
            return
        if self.source.tobytes() != self.seen:
            self.device.fault("host memory changed while a copy of it was under way")
        target[:] = self.source
        self.device.writers[self.to] = "image"


class CopyOut:
    """From the device to pinned host memory, which holds poison until it is done."""

    def __init__(self, device, address, source, size):
        self.device, self.address, self.source, self.size = device, address, source, size

    def announce(self):
        self.target = self.device.pinned_at(self.address, self.size, "a copy to")
        if self.target is not None:
            self.target[:] = 0xFF

    def execute(self):
        source = self.device.bytes_at(self.source, self.size, "a copy from the device")
        if source is not None and self.target is not None:
            self.target[:] = source


class CopyWithin:
    """From device memory to device memory."""

    def __init__(self, device, to, source, size):
        self.device, self.to, self.source, self.size = device, to, source, size

    def announce(self):
        if abs(self.to - self.source) < self.size:
            self.device.fault(f"a copy of {self.size} bytes overlaps itself")

    def execute(self):
        target = self.device.bytes_at(self.to, self.size, "a copy on the device")
        source = self.device.bytes_at(self.source, self.size, "a copy on the device")
        if target is not None and source is not None:
            target[:] = source
