"""Engines are tried on the probe behind a build: on the fake TensorRT, whose values numpy tells."""

import numpy as np
import pytest

from compress.errors import AccuracyError, ToolchainError
from compress.runtime import engine_check, tensorrt_backend
from compress.runtime.cuda import CudaRuntime, DeviceInfo
from compress.runtime.engine_check import check_engines
from compress.runtime.engines import ENGINES, read_engines
from compress.runtime.manifest import read_manifest, write_manifest
from compress.runtime.probe import results_of, write_probe
from tests.runtime.engine_bundles import given_by, sample_images, write_bundle
from tests.runtime.fake_cuda import FakeDevice
from tests.runtime.fake_tensorrt import FakeTensorRT


@pytest.fixture
def device(monkeypatch):
    device = FakeDevice()
    trt = FakeTensorRT(device, "10")
    cuda = CudaRuntime(device.library, device.driver)
    monkeypatch.setattr(engine_check, "probe_cuda", cuda.device_info)
    monkeypatch.setattr(engine_check, "import_tensorrt", lambda builder: trt)
    monkeypatch.setattr(tensorrt_backend, "open_cuda", lambda: cuda)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda builder: trt)
    return device


def written(folder, change=None):
    """A bundle with engines, and a probe of what its graphs would give."""
    write_bundle(folder, change=change)
    manifest = read_manifest(folder)
    images = sample_images(40)
    values, results = {"image": images}, []
    for number, segment in enumerate(manifest.segments):
        values.update(given_by(number, segment, values))
        results.append({spec.name: values[spec.name] for spec in results_of(segment)})
    finite = np.isfinite([part["gate"] for part in results[:-1]]).all(axis=0)
    rows = np.flatnonzero(finite)[:8]
    chosen = [{name: array[rows] for name, array in part.items()} for part in results]
    write_manifest(write_probe(folder, manifest, images[rows], chosen), folder)
    return folder, read_engines(folder, read_manifest(folder))


def test_engines_that_compute_what_was_exported_stay(tmp_path, device):
    bundle, engines = written(tmp_path / "bundle")
    tested = check_engines(bundle, engines)
    assert tested.backend == "tensorrt"
    assert tested.passed
    assert [part.error for part in tested.segments] == [0] * 4
    assert (bundle / ENGINES).exists()
    assert device.faults == []
    assert device.leaks() == {}


def other(engines):
    engines[1]["segment"] = 2  # it adds 200 to its logits, not 100


def test_engines_that_compute_something_else_are_taken_out_of_use(tmp_path, device):
    bundle, engines = written(tmp_path / "bundle", other)
    with pytest.raises(AccuracyError, match=r"segment_1\.onnx is off by"):
        check_engines(bundle, engines)
    assert not (bundle / ENGINES).exists()
    assert device.leaks() == {}


def test_without_a_gpu_engines_are_built_and_not_tried(tmp_path, monkeypatch, caplog):
    def none() -> DeviceInfo:
        raise ToolchainError("no GPU")

    bundle, engines = written(tmp_path / "bundle")
    monkeypatch.setattr(engine_check, "probe_cuda", none)
    assert check_engines(bundle, engines) is None
    assert "built and not tried" in caplog.text
    assert (bundle / ENGINES).exists()
