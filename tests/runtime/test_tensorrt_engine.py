"""Engines that are missing, foreign, damaged or for another device are refused in one sentence."""

import sys
from dataclasses import replace

import pytest

from compress.errors import ToolchainError, UserInputError
from compress.runtime.cuda import CudaRuntime
from compress.runtime.manifest import read_manifest
from compress.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime.engine_bundles import (
    FAKE_GPU,
    UNET,
    assert_decides,
    engine_value,
    opened,
    sample_images,
    write_bundle,
    write_engine_files,
)
from tests.runtime.fake_cuda import FakeDevice
from tests.runtime.fake_tensorrt import FakeTensorRT


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_the_module_is_the_one_that_built_the_engines(tmp_path, monkeypatch, builder):
    device, bundle = FakeDevice(), write_bundle(tmp_path / "bundle")
    trt, manifest = FakeTensorRT(device, "10"), read_manifest(bundle)
    trt.__name__ = builder
    engines = [engine_value(i, s, manifest.batch) for i, s in enumerate(manifest.segments)]
    write_engine_files(bundle, manifest, engines, builder=builder)
    monkeypatch.setitem(sys.modules, builder, trt)
    backend = TensorRTBackend(bundle, manifest, cuda=CudaRuntime(device.library, device.driver))
    assert_decides(backend, bundle, sample_images(8))
    backend.close()


def test_a_missing_tensorrt_is_one_sentence(tmp_path, monkeypatch):
    device, bundle = FakeDevice(), write_bundle(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    cuda = CudaRuntime(device.library, device.driver)
    with pytest.raises(ToolchainError, match=r"^tensorrt, .*python3-libnvinfer"):
        TensorRTBackend(bundle, read_manifest(bundle), cuda=cuda)


def _stamped(**stamp):
    return lambda bundle, manifest, engines: write_engine_files(bundle, manifest, engines, **stamp)


def _damaged(bundle, manifest, engines):
    (bundle / "segment_1.engine").write_bytes(b"other")


def _without_engines(bundle, manifest, engines):
    (bundle / "engines.json").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(_stamped(tensorrt_version="8.6.1"), r"8\.6\.1", id="another TensorRT"),
        pytest.param(_stamped(builder="tensorrt_rtx"), "tensorrt_rtx", id="another builder"),
        pytest.param(
            _stamped(device=replace(FAKE_GPU, compute_capability="7.2")),
            r"7\.2",
            id="another kind of GPU",
        ),
        pytest.param(_stamped(device=replace(FAKE_GPU, name="Xavier")), "Xavier", id="another GPU"),
        pytest.param(
            _stamped(device=replace(FAKE_GPU, multiprocessors=8)),
            r"Fake GPU \(8\.7, 8 multiprocessors, 29\.8 GiB\), this device has .*14 multi",
            id="a smaller board",
        ),
        pytest.param(_damaged, "sha256", id="an altered engine"),
        pytest.param(_without_engines, "build_engines", id="no engines"),
    ],
)
def test_engines_that_are_not_for_this_device_never_reach_tensorrt(tmp_path, change, words):
    bundle, device = write_bundle(tmp_path / "bundle"), FakeDevice()
    manifest = read_manifest(bundle)
    change(bundle, manifest, [engine_value(i, s, (1, 8)) for i, s in enumerate(manifest.segments)])
    with pytest.raises(UserInputError, match=words), opened(bundle, device=device):
        pass
    assert device.faults == []
    assert "cudaStreamCreateWithFlags" not in device.log


def _set(number, place, value):
    def change(engines):
        engines[1]["tensors"][number][place] = value

    return change


def _batches(*size):
    def change(engines):
        engines[1]["batch"] = list(size)

    return change


def _swap(engines):
    engines[1], engines[2] = engines[2], engines[1]


def _one_more(engines):
    engines[1]["tensors"].append([False, "more", "float32", [1]])


def _one_less(engines):
    engines[1]["tensors"].pop()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(_set(0, 1, "x"), "takes x .*expected.* takes hidden_0", id="name of input"),
        pytest.param(_set(3, 1, "score"), "gives score .*expected.* gate", id="name of output"),
        pytest.param(_set(0, 2, "float16"), "float16", id="type of input"),
        pytest.param(_set(2, 2, "int8"), "INT8", id="type of output"),
        pytest.param(_set(1, 3, [3, 4]), "3, 4", id="shape of output"),
        pytest.param(_set(3, 0, True), "takes gate", id="an output that is an input"),
        pytest.param(_swap, "segment_1.engine", id="the engine of another segment"),
        pytest.param(_one_more, "gives more", id="one tensor more"),
        pytest.param(_one_less, "expected", id="one tensor less"),
        pytest.param(_batches(1), "batches of 1 to 1; expected 1 to 8", id="batches of 1 alone"),
        pytest.param(_batches(8), "batches of 8 to 8; expected 1 to 8", id="batches of 8 alone"),
        pytest.param(_batches(1, 4), "batches of 1 to 4; expected 1 to 8", id="small batches"),
        pytest.param(_batches(2, 8), "batches of 2 to 8; expected 1 to 8", id="large batches"),
    ],
)
def test_an_engine_of_something_else_runs_nothing(tmp_path, change, words):
    bundle, device = write_bundle(tmp_path / "bundle", change=change), FakeDevice()
    with pytest.raises(UserInputError, match=words) as caught, opened(bundle, device=device):
        pass
    assert "--force" in str(caught.value)
    assert device.count("cudaMalloc") == 0
    caught.value.with_traceback(None)
    del caught
    assert device.faults == []


def test_an_engine_whose_second_input_takes_fewer_images_runs_nothing(tmp_path):
    def change(engines):
        engines[2]["ranges"] = {"hidden_2": [1, 4]}

    bundle, device = write_bundle(tmp_path / "bundle", dtype=UNET, change=change), FakeDevice()
    with (
        pytest.raises(UserInputError, match="batches of 1 to 4; expected 1 to 8"),
        opened(bundle, device=device),
    ):
        pass
    assert device.count("cudaMalloc") == 0


def test_an_engine_that_tensorrt_cannot_load_is_one_sentence(tmp_path):
    def spoil(engines):
        engines[2] = b"no engine"

    bundle, device = write_bundle(tmp_path / "bundle", change=spoil), FakeDevice()
    advice = r"segment_2\.engine.*python -m compress\.build_engines .*bundle --force"
    with pytest.raises(ToolchainError, match=advice), opened(bundle, device=device):
        pass
    assert device.faults == []
    assert device.blocks == {}
    assert device.streams == {}
