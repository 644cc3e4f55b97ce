"""A TensorRT whose engines compute in the memory of a `FakeDevice`, and note every misuse there.

The engines are a small exact network, `segment_values`, in whole numbers below 64. Until the stream
is waited for, what the host can see of their outputs holds NaN.
"""

import json
import weakref
from enum import Enum
from itertools import pairwise

import numpy as np

from compress.runtime.manifest import TensorSpec

WRITTEN_AS = {"hidden_in": "hidden"}  # in files of format 1
VERSIONS = {"8.5": "8.5.2.2", "8.6": "8.6.2.3", "10": "10.3.0", "11": "11.4.1"}  # of each era


def segment_values(segment, outputs, taken):
    """Return what a segment gives: a dict of arrays of whole numbers in [0, 64), logits aside.

    Args:
        segment: its number.
        outputs: their specs.
        taken: {name: (B, …)} of whole numbers in [0, 64); every one of them counts.
    """
    flat = _mixed([taken[name] for name in sorted(taken)])
    names = {spec.name for spec in outputs}
    values = {}
    for place, spec in enumerate(outputs):
        size = int(np.prod(spec.shape))
        if spec.name == "logits":
            values["logits"] = flat[:, :size] + 100.0 * segment
        elif spec.name == "gate":
            score = (3 * flat[:, 0] + 5 * flat[:, 1] + 7 * segment) % 64
            values["gate"] = np.where(score == 13, np.nan, score / 64)
        elif "logits" in names and "gate" in names:
            rows = np.roll((flat * 5 + 7) % 64, 1 + place, axis=1)
            content = np.stack([np.resize(row, spec.shape) for row in rows])
            values[spec.name] = content % 2 if spec.dtype == "bool" else content
        else:
            values[spec.name] = np.stack([np.resize(row + place, spec.shape) for row in flat])
    return values


def _mixed(arrays):
    """One row (B, L) of all inputs, as long as the longest; of one input the input itself."""
    rows = [x.reshape(len(x), -1).astype(np.float64) for x in arrays]
    longest = max(x.shape[1] for x in rows)
    repeated = [np.stack([np.resize(row, longest) for row in x]) for x in rows]
    return sum((place + 1) * x for place, x in enumerate(repeated)) % 64


class FakeTensorRT:
    """The module: the names of one era, "8.5", "8.6", "10" or "11", and no others.

    Attributes:
        log: names of the TensorRT calls, in the device's log too.
        uncapturable: segments that cannot be captured.
    """

    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    DataType = Enum("DataType", "FLOAT HALF INT8 INT32 INT64 BOOL")

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

        def __init__(self):
            self.is_made = True  # pybind11 crashes when this was not called

    def __init__(self, device, era, *, uncapturable=(), refuses=()):
        self.__name__, self.__version__ = "tensorrt", VERSIONS[era]
        self._device, self._era = device, era
        self._uncapturable, self._refuses = uncapturable, refuses
        if era == "8.6":
            self.PreviewFeature = Enum("PreviewFeature", "PROFILE_SHARING_0806")
        if era in ("10", "11"):
            self.ExecutionContextAllocationStrategy = Enum("Strategy", "STATIC USER_MANAGED")

    def Runtime(self, logger):  # noqa: N802 - TensorRT's name
        if not self._device.is_probed:
            self._device.fault("TensorRT crashed the interpreter: there is no CUDA")
        assert logger.is_made
        logger.log(self.ILogger.Severity.INFO, "made a runtime")
        return FakeRuntime(self, logger)


class Counted:
    """An object of TensorRT's: its end is in the device's log."""

    def __init__(self, trt):
        self._trt, self._device = trt, trt._device
        self._device.alive.add(self)
        weakref.finalize(self, self._device.log.append, f"{type(self).__name__[4:]} gone")


class FakeRuntime(Counted):
    def __init__(self, trt, logger):
        super().__init__(trt)
        self._logger = logger

    def deserialize_cuda_engine(self, content):
        try:
            value = json.loads(content)
        except ValueError:
            self._logger.log(self._trt.ILogger.Severity.ERROR, "Serialization failed")
            return None
        kinds = {"8.5": FakeEngine8, "8.6": FakeEngine8, "10": FakeEngine10, "11": FakeEngine11}
        return kinds[self._trt._era](self._trt, value)


class FakeEngineBase(Counted):
    """An engine from JSON: segment, batch ([n] or [low, high]), memory, tensors, ranges.

    A tensor is [is input, name, dtype, shape of one image]; ranges are those of inputs that take
    other batches than the rest.
    """

    def __init__(self, trt, value):
        super().__init__(trt)
        self._value = value
        self._tensors = {name: (way, dtype, shape) for way, name, dtype, shape in value["tensors"]}
        self._is_dynamic = len(value["batch"]) == 2
        self._contexts = 0

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def inputs(self):
        return [name for name, (is_input, *_) in self._tensors.items() if is_input]

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        mode = self._trt.TensorIOMode
        return mode.INPUT if self._tensors[name][0] else mode.OUTPUT

    def get_tensor_dtype(self, name):
        kinds = self._trt.DataType
        words = {
            "float32": kinds.FLOAT,
            "float16": kinds.HALF,
            "int8": kinds.INT8,
            "int32": kinds.INT32,
            "int64": kinds.INT64,
            "bool": kinds.BOOL,
        }
        return words[self._tensors[name][1]]

    def get_tensor_shape(self, name):
        batch = -1 if self._is_dynamic else self._value["batch"][0]
        return iter([batch, *self._tensors[name][2]])  # Dims is no tuple either

    def get_tensor_profile_shape(self, name, profile):
        low, high = self._value.get("ranges", {}).get(name, self._value["batch"])
        shape = self._tensors[name][2]
        assert profile == 0
        return [[size, *shape] for size in (low, high, high)]

    def _made(self, kind):
        self._device.log.append("context")
        self._contexts += 1
        if ("context", self._value["segment"]) in self._trt._refuses:
            return None
        return kind(self, self._contexts)


class FakeEngine8(FakeEngineBase):
    @property
    def device_memory_size(self):
        return self._value["memory"]

    def create_execution_context_without_device_memory(self):
        kind = FakeContext10 if self._trt._era == "10" else FakeContext8
        return self._made(kind)


class FakeEngine10(FakeEngine8):
    @property
    def device_memory_size(self):
        return min(self._value["memory"], 64)  # the old name tells too little of a new engine

    @property
    def device_memory_size_v2(self):
        return self._value["memory"]


class FakeEngine11(FakeEngineBase):
    @property
    def device_memory_size_v2(self):
        return self._value["memory"]

    def create_execution_context(self, strategy):
        assert strategy is self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._made(FakeContext10)


class FakeContext8(Counted):
    """A context that checks what it is given, and computes when the stream comes to it."""

    def __init__(self, engine, number):
        super().__init__(engine._trt)
        self._engine, self._number = engine, number
        self._addresses = {}
        self._sizes = {}  # images of each input
        if not engine._is_dynamic:
            self._sizes = dict.fromkeys(engine.inputs(), engine._value["batch"][0])
        self._settled = None  # rows of the last call outside a capture
        self._is_captured = False
        self._memory = self._memory_size = None

    def __setattr__(self, name, value):
        if name == "device_memory":
            self._give(value, None)
        elif name.startswith("_"):
            super().__setattr__(name, value)
        else:
            raise AttributeError(name)

    def _give(self, pointer, size):
        self._change("its memory")
        self._memory, self._memory_size = pointer, size

    def _change(self, what):
        if self._is_captured:
            self._device.fault(f"a context is told {what} behind the graph that was captured of it")

    def set_tensor_address(self, name, pointer):
        self._change(f"the address of {name}")
        if name not in self._engine._tensors or ("address", name) in self._trt._refuses:
            return False
        if pointer % 256:
            self._device.fault(f"the address of {name} is not aligned to 256")
        self._addresses[name] = pointer
        return True

    def set_input_shape(self, name, shape):
        self._change("a shape")
        self._device.log.append("set_input_shape")
        engine = self._engine
        if not engine._is_dynamic:
            self._device.fault("the shape of an engine that has but one is set")
        is_input, _, one = engine._tensors[name]
        if not is_input or list(shape[1:]) != list(one):
            return False
        low, high = engine._value["batch"]
        if self._trt._era == "8.5" and self._number > 1:
            self._device.fault("TensorRT logs an error: the profile is in use by another context")
            return False
        if not low <= shape[0] <= high:
            return False
        self._sizes[name] = shape[0]
        return True

    @property
    def _rows(self):
        """Images of a call; None unless all inputs were told the same."""
        sizes = {self._sizes.get(name) for name in self._engine.inputs()}
        return sizes.pop() if len(sizes) == 1 else None

    def execute_async_v3(self, stream):
        self._device.log.append("execute_async_v3")
        if self._device.last_error:
            self._device.fault(f"TensorRT meets CUDA error {self._device.last_error}")
        device, segment = self._device, self._engine._value["segment"]
        if set(self._addresses) != set(self._engine._tensors) or self._rows is None:
            device.fault(f"segment {segment} runs without all of its addresses and shapes")
            return False
        if ("execute", segment) in self._trt._refuses:
            return False
        if stream in device.recording:
            if self._settled != self._rows:
                device.fault(f"segment {segment} is captured before a first call with its shape")
            if segment in self._trt._uncapturable:
                device.recording[stream] = None
                return False
            self._is_captured = True
        else:
            self._settled = self._rows
        call = Call(self, dict(self._addresses), self._rows)
        call.check()
        return device.enqueue(stream, call) == 0


class FakeContext10(FakeContext8):
    def set_device_memory(self, pointer, size):
        self._give(pointer, size)


class Call:
    """One run of an engine in a stream."""

    def __init__(self, context, addresses, rows):
        self.context = weakref.ref(context)  # a graph does not keep its context alive
        self.value, self.tensors = context._engine._value, context._engine._tensors
        self.device, self.addresses, self.rows = context._device, addresses, rows
        self.memory, self.memory_size = context._memory, context._memory_size
        self.what = f"segment {self.value['segment']}"

    def check(self):
        """Note ranges that are foreign, that overlap, or memory that does not suffice."""
        needed = self.value["memory"]
        if self.memory is None or self.memory % 256:
            self.device.fault(f"{self.what} has no memory for its activations")
            return
        if self.memory_size is not None and self.memory_size < needed:
            self.device.fault(f"{self.what} has {self.memory_size} bytes for activations")
        ranges = [(self.memory, needed)]
        ranges += [(self.addresses[name], self.size(name)) for name in self.tensors]
        for pointer, size in ranges:
            self.device.bytes_at(pointer, size, self.what)
        ranges.sort()
        for (pointer, size), (following, _) in pairwise(ranges):
            if pointer + size > following:
                self.device.fault(f"{self.what} has tensors that share memory")

    def size(self, name):
        _, dtype, shape = self.tensors[name]
        return self.rows * int(np.prod(shape)) * np.dtype(dtype).itemsize

    def announce(self):
        """Poison what the host may look at too soon."""
        for name, (is_input, *_) in self.tensors.items():
            content = None if is_input else self.array(name)
            if content is not None and not name.startswith("hidden"):
                content.view(np.uint8)[:] = 0xFF  # NaN, or -1

    def array(self, name):
        _, dtype, shape = self.tensors[name]
        content = self.device.bytes_at(self.addresses[name], self.size(name), self.what)
        return None if content is None else content.view(dtype).reshape(self.rows, *shape)

    def execute(self):
        if self.context() is None:
            self.device.fault(f"{self.what} runs after its context is gone")
        taken, segment = {}, self.value["segment"]
        for name, (is_input, *_) in self.tensors.items():
            if is_input:
                taken[name] = self.array(name)
                written = self.device.writers.get(self.addresses[name])
                if written not in (name, WRITTEN_AS.get(name)):
                    self.device.fault(f"{self.what} takes {name} where {written} lies")
        outputs = [
            TensorSpec(name, dtype, tuple(shape))
            for name, (is_input, dtype, shape) in self.tensors.items()
            if not is_input
        ]
        scratch = self.device.bytes_at(self.memory, self.value["memory"], self.what)
        if scratch is None or any(content is None for content in taken.values()):
            return
        scratch[:] = 0xFF
        for name, value in segment_values(segment, outputs, taken).items():
            content = self.array(name)
            if content is not None:
                content[:] = value
                self.device.writers[self.addresses[name]] = name
