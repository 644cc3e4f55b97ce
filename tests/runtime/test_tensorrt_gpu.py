"""Real engines on a real GPU, built here; skipped where there is none."""

import hashlib
import math

import numpy as np
import pytest

from compress.errors import ToolchainError
from compress.runtime.cuda import probe_cuda
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.engine_builder import build_engines
from compress.runtime.manifest import Manifest, Segment, TensorSpec, read_manifest, write_manifest
from compress.runtime.tensorrt_backend import TensorRTBackend

IMAGE = TensorSpec("image", "float32", (3, 2, 2))
CLASSES = 4


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [(1, 1), (1, 8)])
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_real_engines_decide_as_onnx_runtime_does(tmp_path, module, batch):
    """Needs a GPU, TensorRT and onnx; the engines are built here."""
    try:
        probe_cuda()
    except ToolchainError as err:
        pytest.skip(str(err))
    pytest.importorskip(module)
    bundle, images = _real_bundle(tmp_path / "bundle", batch), _clear_images(40)
    build_engines(bundle, builder=module.replace("_", "-"))
    with Dispatcher(bundle, "onnxruntime") as reference:
        expected = reference.run(images)
    assert set(expected.exits) == {0, 1}
    for use_graphs, wait in ((True, "spin"), (True, "block"), (False, "yield")):
        manifest = read_manifest(bundle)
        backend = TensorRTBackend(bundle, manifest, use_graphs=use_graphs, wait=wait)
        with Dispatcher(bundle, backend) as dispatcher:
            for _ in range(2):  # recorded, then launched
                done = dispatcher.run(images)
                np.testing.assert_array_equal(done.exits, expected.exits)
                np.testing.assert_allclose(done.logits, expected.logits, rtol=1e-2, atol=5e-2)


def test_the_bundle_of_the_gpu_test_is_sound_and_its_decisions_are_clear(tmp_path):
    bundle = _real_bundle(tmp_path / "bundle", (1, 8))
    with Dispatcher(bundle, "onnxruntime") as dispatcher:
        exits = dispatcher.run(_clear_images(40)).exits
    assert np.bincount(exits).min() > 5


def _clear_images(count):
    """Return images whose first gate is far from its threshold, for TF32 too."""
    images = np.random.default_rng(1).normal(size=(4 * count, *IMAGE.shape)).astype(np.float32)
    hidden = np.tanh(images.reshape(len(images), -1) @ _weights(0, IMAGE)["w"])
    return images[np.abs(hidden.sum(axis=1)) > 0.5][:count]


def _real_bundle(folder, batch):
    """Write a bundle of two segments, each two matrix products."""
    onnx = pytest.importorskip("onnx")
    folder.mkdir()
    parts, taken = [], IMAGE
    hidden = TensorSpec("hidden_0", "float32", (8,))
    for i in range(2):
        logits = TensorSpec("logits", "float32", (CLASSES,))
        gate = TensorSpec("gate", "float32", ())
        outputs = (logits,) if i else (hidden, logits, gate)
        model = _two_products(onnx, i, taken, outputs, batch)
        path = folder / f"segment_{i}.onnx"
        onnx.save(model, path)
        digest, bar = hashlib.sha256(path.read_bytes()).hexdigest(), None if i else 0.5
        at = None if i else "product"
        parts.append(Segment(path.name, digest, at, 1, bar, (taken,), outputs))
        taken = hidden
    classes = tuple("abcd")
    write_manifest(Manifest("real", classes, None, batch, "tensorrt10", 17, tuple(parts)), folder)
    return folder


def _weights(number, taken):
    rng, size = np.random.default_rng(number), math.prod(taken.shape)
    return {
        "flat_shape": np.array([-1, size], dtype=np.int64),
        "w": rng.normal(size=(size, 8)).astype(np.float32),
        "head": rng.normal(size=(8, CLASSES)).astype(np.float32),
        "sharp": np.full((8, 1), 50, dtype=np.float32),
        "rows": np.array([-1], dtype=np.int64),
    }


def _two_products(onnx, number, taken, outputs, batch):
    helper, rows = onnx.helper, 1 if batch == (1, 1) else "B"
    state = "state" if number else "hidden_0"
    nodes = [
        helper.make_node("Reshape", [taken.name, "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], [state]),
        helper.make_node("MatMul", [state, "head"], ["logits"]),
    ]
    if number == 0:
        nodes += [
            helper.make_node("MatMul", [state, "sharp"], ["score"]),
            helper.make_node("Sigmoid", ["score"], ["column"]),
            helper.make_node("Reshape", ["column", "rows"], ["gate"]),
        ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "two products",
        [helper.make_tensor_value_info(taken.name, kind, [rows, *taken.shape])],
        [helper.make_tensor_value_info(s.name, kind, [rows, *s.shape]) for s in outputs],
        [
            onnx.numpy_helper.from_array(value, name)
            for name, value in _weights(number, taken).items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
