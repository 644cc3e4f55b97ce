"""The ctypes binding against a table of C functions; against a GPU where there is one."""

import ctypes

import numpy as np
import pytest

from compress.errors import ToolchainError
from compress.runtime import cuda
from compress.runtime.cuda import CudaRuntime, DeviceInfo, open_cuda, probe_cuda
from compress.runtime.cuda_wait import WAITS, Waiting
from tests.runtime.fake_cuda import FakeDevice


@pytest.fixture
def device():
    device = FakeDevice()
    yield device
    assert device.faults == []
    assert device.leaks() == {}


@pytest.fixture
def runtime(device):
    return CudaRuntime(device.library, device.driver)


def _installed(monkeypatch, libraries):
    """Let these, by name, be all the libraries of the machine."""

    def load(name):
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name]

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(cuda.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(cuda, "glob", lambda pattern: [n for n in libraries if n.startswith("/")])


def test_a_device_is_told_with_its_capability_and_name(runtime):
    assert runtime.device_info() == DeviceInfo(
        name="Fake GPU",
        compute_capability="8.7",
        multiprocessors=14,
        memory_gib=29.8,
        clock_mhz=1300,
    )


@pytest.mark.parametrize(
    "library",
    ["libcudart.so", "libcudart.so.11.0", "/usr/local/cuda-11.4/targets/a/lib/libcudart.so.11"],
)
def test_the_runtime_is_found_under_its_names_and_in_its_folders(monkeypatch, library):
    device = FakeDevice()
    _installed(monkeypatch, {library: device.library, "libcuda.so.1": device.driver})
    assert probe_cuda().name == "Fake GPU"


def test_a_runtime_that_the_driver_is_too_old_for_does_not_hide_an_older_one(monkeypatch):
    newer, older = FakeDevice(devices=-1), FakeDevice()
    libraries = {"libcudart.so": newer.library, "libcudart.so.12": older.library}
    _installed(monkeypatch, {**libraries, "libcuda.so.1": older.driver})
    open_cuda().stream_create()
    assert older.count("cudaStreamCreateWithFlags") == 1
    assert newer.count("cudaStreamCreateWithFlags") == 0


def test_no_library_is_one_sentence(monkeypatch):
    _installed(monkeypatch, {})
    with pytest.raises(ToolchainError, match=r"no CUDA runtime library .* onnxruntime backend$"):
        probe_cuda()


@pytest.mark.parametrize(("devices", "why"), [(-1, "35: driver too old"), (0, "0 devices")])
def test_no_driver_and_no_device_are_one_sentence(monkeypatch, devices, why):
    device = FakeDevice(devices=devices)
    _installed(monkeypatch, {"libcudart.so": device.library, "libcuda.so.1": device.driver})
    with pytest.raises(ToolchainError, match=f"no usable GPU .*{why}.* onnxruntime backend$"):
        probe_cuda()


def test_a_device_without_a_name_is_an_error(monkeypatch):
    device = FakeDevice()
    _installed(monkeypatch, {"libcudart.so": device.library})
    with pytest.raises(ToolchainError, match="name"):
        probe_cuda()


def test_a_foreign_library_is_named_as_too_old():
    device = FakeDevice(without=["cudaStreamBeginCapture"])
    with pytest.raises(ToolchainError, match=r"cudaStreamBeginCapture.*CUDA 11\.4 or newer"):
        CudaRuntime(device.library)


def test_the_libraries_of_this_machine_have_every_function():
    """Where a CUDA toolkit or wheel is installed, with a driver or without."""
    for library in filter(None, map(cuda._loaded, cuda._candidates())):
        CudaRuntime(library)  # raises when one is missing


def test_memory_comes_and_goes_and_pointers_keep_their_high_bits(device, runtime):
    pointer = runtime.malloc(1000)
    assert pointer > 1 << 32
    assert pointer % 256 == 0
    assert device.blocks[pointer].size == 1000
    runtime.free(pointer)


def test_mapped_memory_is_one_memory_under_two_addresses(device, runtime):
    memory = runtime.host_alloc(256)
    memory.array[:] = np.arange(256, dtype=np.uint8)
    assert memory.array.dtype == np.uint8
    assert device.bytes_at(memory.pointer, 256, "the test").tolist() == list(range(256))
    device.bytes_at(memory.pointer, 256, "the test")[3] = 200
    assert memory.array[3] == 200
    runtime.host_free(memory)


def test_pinned_memory_that_cannot_be_mapped_is_given_back(device, runtime):
    device.fail_at = 2
    with pytest.raises(ToolchainError, match="cudaHostGetDevicePointer failed"):
        runtime.host_alloc(256)  # the fixture finds what leaks


def test_copies_are_done_once_the_stream_is_waited_for(device, runtime):
    stream, memory = runtime.stream_create(), runtime.host_alloc(64)
    pointer = runtime.malloc(128)
    memory.array[:] = 7
    runtime.copy_to_device(pointer, memory.address, 64, stream)
    runtime.copy_on_device(pointer + 64, pointer, 64, stream)
    assert (device.bytes_at(pointer, 128, "the test") == 0xFF).all()
    runtime.stream_synchronize(stream)
    assert (device.bytes_at(pointer, 128, "the test") == 7).all()
    runtime.host_free(memory)
    runtime.free(pointer)
    runtime.stream_destroy(stream)


@pytest.mark.parametrize("without", [(), ("cudaGraphInstantiateWithFlags",)])
def test_a_graph_repeats_what_was_captured_and_capturing_runs_nothing(without):
    device = FakeDevice(without=without)
    runtime = CudaRuntime(device.library)
    stream, pointer = runtime.stream_create(), runtime.malloc(128)
    content = device.bytes_at(pointer, 128, "the test")
    content[:64] = 5
    graph = runtime.capture(
        stream, lambda: runtime.copy_on_device(pointer + 64, pointer, 64, stream)
    )
    runtime.stream_synchronize(stream)
    assert (content[64:] == 0xFF).all()
    for value in (5, 9):
        content[:64] = value
        runtime.graph_launch(graph, stream)
        runtime.stream_synchronize(stream)
        assert (content[64:] == value).all()
    runtime.graph_destroy(graph)
    runtime.free(pointer)
    runtime.stream_destroy(stream)
    assert device.faults == []
    assert device.leaks() == {}


def test_a_capture_that_goes_wrong_ends_and_leaves_the_stream_usable(device, runtime):
    stream = runtime.stream_create()

    def refuse():
        raise ToolchainError("refused")

    with pytest.raises(ToolchainError, match="refused"):
        runtime.capture(stream, refuse)
    runtime.stream_synchronize(stream)  # a fault while the stream still records
    runtime.stream_destroy(stream)


def test_waiting_inside_a_capture_is_an_error_that_ends_it():
    device = FakeDevice()
    runtime = CudaRuntime(device.library)
    stream = runtime.stream_create()
    with pytest.raises(ToolchainError, match="CUDA error 901: capture broke"):
        runtime.capture(stream, lambda: runtime.stream_synchronize(stream))
    assert device.recording == {}
    assert device.faults == ["waiting while a stream is captured"]


def test_a_graph_that_cannot_be_instantiated_is_given_back(device, runtime):
    stream = runtime.stream_create()
    device.fail_at = device.calls + 3
    with pytest.raises(ToolchainError, match="cudaGraphInstantiate failed"):
        runtime.capture(stream, lambda: None)
    runtime.stream_destroy(stream)


def test_an_error_is_told_in_cudas_words_and_taken_back_from_cuda(device, runtime):
    device.fail_at = 1
    with pytest.raises(
        ToolchainError, match=r"^cudaMalloc failed \(CUDA error 2: out of memory\); .*smaller"
    ):
        runtime.malloc(64)
    assert device.last_error == 0


@pytest.mark.gpu
def test_a_real_device_copies_records_and_maps():
    try:
        runtime = open_cuda()
    except ToolchainError as err:
        pytest.skip(str(err))
    assert probe_cuda() == runtime.device_info()
    stream, memory = runtime.stream_create(), runtime.host_alloc(512)
    pointer = runtime.malloc(512)
    assert pointer % 256 == 0
    assert memory.pointer % 256 == 0
    graph = runtime.capture(
        stream, lambda: runtime.copy_on_device(pointer + 256, pointer, 256, stream)
    )
    for value in (3, 8):
        memory.array[:] = value
        runtime.copy_to_device(pointer, memory.address, 256, stream)
        runtime.graph_launch(graph, stream)
        runtime.copy_on_device(memory.pointer + 256, pointer + 256, 256, stream)
        runtime.stream_synchronize(stream)
        assert (memory.array == value).all()
    runtime.graph_destroy(graph)
    runtime.host_free(memory)
    runtime.free(pointer)
    runtime.stream_destroy(stream)
    with pytest.raises(ToolchainError, match="cudaMalloc failed"):
        runtime.malloc(1 << 50)
    runtime.free(runtime.malloc(256))  # the error was not left behind


@pytest.mark.gpu
@pytest.mark.parametrize("how", WAITS)
def test_a_real_device_is_waited_for_in_every_way(how):
    try:
        runtime = open_cuda()
    except ToolchainError as err:
        pytest.skip(str(err))
    waiting, stream = Waiting(runtime, how), runtime.stream_create()
    size = 64 << 20  # that takes a while to travel
    memory, pointer = runtime.host_alloc(size), runtime.malloc(size)
    for value in (3, 8):
        memory.array[:] = value
        runtime.copy_to_device(pointer, memory.address, size, stream)
        waiting.wait(stream)
        memory.array[:] = 0
        runtime.copy_to_host(memory.address, pointer, size, stream)
        waiting.wait(stream)
        assert (memory.array == value).all()
    assert runtime._functions["cudaGetLastError"]() == 0
    runtime.stream_destroy(stream)
    waiting.close()
