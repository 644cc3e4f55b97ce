"""Bundles with engines of the fake TensorRT, and what they decide, in plain numpy."""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from compress.runtime.cuda import CudaRuntime, DeviceInfo
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.engines import EngineFile, EngineSet, write_engines
from compress.runtime.manifest import Manifest, Segment, TensorSpec, read_manifest, write_manifest
from compress.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime.fake_cuda import FakeDevice
from tests.runtime.fake_tensorrt import VERSIONS, FakeTensorRT, segment_values

ERAS = ["8.5", "8.6", "10", "11"]
IMAGE = TensorSpec("image", "float32", (2, 4, 4))  # 8 of them fill whole units of 256 bytes
HIDDEN = ((3, 4), (2, 3), (5, 7))  # shapes that differ, so that no row has another's size
CLASSES = 4
LOGITS = TensorSpec("logits", "float32", (CLASSES,))
GATE = TensorSpec("gate", "float32", ())
UNET = "U-Net"  # in place of the type of a chain's hidden states
MEMORY = (4096, 100_000, 300, 7)  # scratch bytes: the largest neither first nor last
MIXED = (0.5, 0.8, 0.4)
FAKE_GPU = DeviceInfo("Fake GPU", "8.7", multiprocessors=14, memory_gib=29.8, clock_mhz=1300)


def onnx_of(number):
    """The least that is an ONNX file: the name of its producer, as protobuf writes it."""
    return b"\x12\x01%d" % number


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _segments(dtype, exits, given=None):
    taken, parts = IMAGE, []
    for i in range(exits + 1):
        hidden = TensorSpec(f"hidden_{i}", dtype, HIDDEN[i % 3])
        last = i == exits
        outputs = given or (LOGITS,)
        parts.append(_segment(i, (taken,), outputs if last else (hidden, LOGITS, GATE), last))
        taken = hidden
    return tuple(parts)


def _unet():
    """What two skip connections look like: tensors that a segment between does not touch."""
    skip = TensorSpec("hidden_0", "float32", (3, 4))
    deep = TensorSpec("hidden_1", "float16", (5,))
    places = TensorSpec("hidden_2", "int64", (6,))
    mask = TensorSpec("hidden_3", "bool", ())
    joined = TensorSpec("hidden_4", "float32", (2, 3))
    return (
        _segment(0, (IMAGE,), (skip, deep, LOGITS, GATE)),
        _segment(1, (deep,), (places, mask, LOGITS, GATE)),
        _segment(2, (IMAGE, skip, places), (joined, LOGITS, GATE)),
        _segment(3, (mask, joined), (LOGITS,), last=True),
    )


def _segment(number, inputs, outputs, last=False):
    return Segment(
        file=f"segment_{number}.onnx",
        sha256=_sha256(onnx_of(number)),
        at=None if last else f"layer{number}",
        macs=1,
        threshold=None if last else MIXED[number],
        inputs=inputs,
        outputs=outputs,
    )


def engine_value(number, segment, batch):
    sides = ((True, segment.inputs), (False, segment.outputs))
    tensors = [[way, s.file_name, s.dtype, list(s.shape)] for way, specs in sides for s in specs]
    size = [1] if batch == (1, 1) else list(batch)
    return {"segment": number, "batch": size, "memory": MEMORY[number], "tensors": tensors}


def write_engine_files(bundle, manifest, engines, **stamp):
    files = []
    for number, (engine, segment) in enumerate(zip(engines, manifest.segments, strict=True)):
        content = engine if isinstance(engine, bytes) else json.dumps(engine).encode()
        (bundle / f"segment_{number}.engine").write_bytes(content)
        files.append(EngineFile(f"segment_{number}.engine", _sha256(content), segment.sha256))
    made = EngineSet(
        **{
            "builder": "tensorrt",
            "tensorrt_version": "10.3.0",
            "device": FAKE_GPU,
            "segments": tuple(files),
            **stamp,
        }
    )
    write_engines(made, bundle)


def write_bundle(
    folder, *, dtype="float32", batch=(1, 8), exits=3, era="10", change=None, given=None
):
    """Write a bundle with engines, after `change(engines)`; return its folder.

    `given` is what the last segment gives in place of logits alone. Of dtype UNET it is a network
    where several tensors cross.
    """
    has_logits = given is None or given[0].name == "logits"
    folder.mkdir(parents=True)
    manifest = Manifest(
        name="fake",
        classes=tuple("abcd") if has_logits else (),
        preprocessing=None,
        batch=batch,
        target="tensorrt10",
        opset=17,
        segments=_unet() if dtype == UNET else _segments(dtype, exits, given),
    )
    for number, segment in enumerate(manifest.segments):
        (folder / segment.file).write_bytes(onnx_of(number))
    write_manifest(manifest, folder)
    engines = [engine_value(i, segment, batch) for i, segment in enumerate(manifest.segments)]
    if change is not None:
        change(engines)
    write_engine_files(folder, manifest, engines, tensorrt_version=VERSIONS[era])
    return folder


@contextmanager
def opened(bundle, *, era="10", device=None, uncapturable=(), refuses=(), **options):
    """Give the backend and its device; afterwards there are neither faults nor leaks."""
    device = device or FakeDevice()
    trt = FakeTensorRT(device, era, uncapturable=uncapturable, refuses=refuses)
    cuda = CudaRuntime(device.library, device.driver)
    backend = TensorRTBackend(bundle, read_manifest(bundle), trt=trt, cuda=cuda, **options)
    try:
        yield backend, device
    finally:
        backend.close()
    del backend
    assert device.faults == []
    assert device.leaks() == {}


def given_by(number, segment, values):
    """Return what a segment gives by the names in the bundle, as `values` of its inputs are."""
    taken = {spec.file_name: values[spec.name] for spec in segment.inputs}
    outputs = [replace(spec, name=spec.file_name, alias=None) for spec in segment.outputs]
    given = segment_values(number, outputs, taken)
    return {spec.name: given[spec.file_name] for spec in segment.outputs}


def decided(bundle, images, bars=None):
    """Return logits and exits of images one by one, in plain numpy: the reference."""
    manifest = read_manifest(bundle, check_files=False)
    bars = manifest.thresholds if bars is None else bars
    logits, exits = [], []
    for image in images:
        values = {"image": image[None]}
        for number, segment in enumerate(manifest.segments):
            values.update(given_by(number, segment, values))
            if number == len(bars) or values["gate"][0] >= bars[number]:
                break
        logits.append(values["logits"][0])
        exits.append(number)
    return np.array(logits, dtype=np.float32), np.array(exits)


def sample_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 64, (count, *IMAGE.shape)).astype(np.float32)


def assert_decides(backend, bundle, images):
    done = Dispatcher(bundle, backend).run(images)
    logits, exits = decided(bundle, images)
    np.testing.assert_array_equal(done.exits, exits)
    np.testing.assert_array_equal(done.logits, logits)
