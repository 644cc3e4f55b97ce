"""The dispatcher inside Triton against a plain early exit, image by image.

It runs as the server would run it: `model.py` from the repository, against a stand-in for the
server's module, whose requests to segments really run the ONNX files.
"""

import ast
import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.export import triton_bls
from compress.export.triton import write_triton
from tests.export.skipping_bundle import images_of, write_skipping_bundle
from tests.export.small_graphs import run_reference
from tests.export.triton_bundles import (
    BATCH,
    CLASSES,
    THRESHOLDS,
    early_exit,
    images_with,
    weights_of,
    write_bundle,
)
from tests.export.triton_server import (
    Server,
    ServerError,
    Tensor,
    TritonError,
    answer,
    load_model,
    request,
)

NAN = float("nan")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_bundle(folder / "bundle")
    write_triton(folder / "bundle", folder / "models")
    server = Server(folder / "models")
    return load_model(folder / "models", server), server


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


# ------------------------------------------------------------------------------ the file


def test_model_py_needs_python_3_8_and_numpy_alone(bundle, tmp_path):
    write_triton(bundle, tmp_path / "models")
    source = (tmp_path / "models" / "tiny" / "1" / "model.py").read_text(encoding="utf-8")
    assert source == Path(triton_bls.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    packages = {name.partition(".")[0] for name in names}
    assert packages - sys.stdlib_module_names == {"numpy"}


# ------------------------------------------------------------------------------ dispatching

gate = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, NAN, float("inf"), -1.0])
bar = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@settings(deadline=None, max_examples=150)
@given(
    gates=st.lists(st.tuples(gate, gate), min_size=1, max_size=BATCH),
    bars=st.tuples(bar, bar),
    seed=st.integers(0, 99),
)
def test_every_image_leaves_where_it_would_leave_alone(served, gates, bars, seed):
    model, server = served
    images = images_with(gates, seed)
    logits, exits = answer(model, server, images, {"thresholds": ",".join(map(str, bars))})
    expected_logits, expected_exits = early_exit(images, bars)
    np.testing.assert_array_equal(exits, expected_exits)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    # Segment i sees exactly the images that did not leave before it, and no segment sees none.
    travelling = [int((expected_exits >= i).sum()) for i in range(3)]
    assert [(name, rows) for name, rows, _ in server.calls] == [
        (f"tiny_segment_{i}", rows) for i, rows in enumerate(travelling) if rows
    ]


def test_half_precision_hidden_states_stay_half(tmp_path):
    write_bundle(tmp_path / "bundle", dtype="float16")
    write_triton(tmp_path / "bundle", tmp_path / "models")
    server = Server(tmp_path / "models")
    model = load_model(tmp_path / "models", server)
    images = images_with([[0, 0], [1, 0], [0, 1], [NAN, NAN]])
    logits, exits = answer(model, server, images)
    expected_logits, expected_exits = early_exit(images, THRESHOLDS, "float16")
    np.testing.assert_array_equal(exits, expected_exits)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_a_bundle_for_single_images_is_served_without_a_batch_of_tritons_own(tmp_path):
    write_bundle(tmp_path / "bundle", batch=1)
    write_triton(tmp_path / "bundle", tmp_path / "models")
    server = Server(tmp_path / "models")
    model = load_model(tmp_path / "models", server)
    for gates in ([0, 0], [1, 0], [0, 1]):
        images = images_with([gates])
        logits, exits = answer(model, server, images)
        expected_logits, expected_exits = early_exit(images, THRESHOLDS)
        np.testing.assert_array_equal(exits, expected_exits)
        np.testing.assert_allclose(logits, expected_logits, rtol=1e-5)


def test_a_network_without_exits_is_one_segment(tmp_path):
    write_bundle(tmp_path / "bundle", thresholds=())
    write_triton(tmp_path / "bundle", tmp_path / "models")
    server = Server(tmp_path / "models")
    model = load_model(tmp_path / "models", server)
    images = images_with(np.zeros((3, 0)))
    logits, exits = answer(model, server, images)
    np.testing.assert_array_equal(exits, np.zeros((3, 1)))
    np.testing.assert_allclose(logits, images.reshape(3, -1) @ weights_of(0), rtol=1e-5)


def test_requests_of_one_call_are_answered_each_by_itself(served):
    model, _ = served
    answers = model.execute(
        [
            request(images_with([[1, 0]])),
            request(images_with([[0, 0]] * 2), {"thresholds": "2"}),
            request(images_with([[0, 1]] * 3)),
        ]
    )
    assert [each.has_error() for each in answers] == [False, True, False]
    assert [len(each.tensors[1].array) for each in answers if not each.has_error()] == [1, 3]


# ------------------------------------------------------------------------------ thresholds


def test_thresholds_of_the_configuration_can_be_edited(served, tmp_path, bundle):
    write_triton(bundle, tmp_path / "models")
    server = Server(tmp_path / "models")
    model = load_model(tmp_path / "models", server, thresholds="0.9, 0.9")
    _, exits = answer(model, server, images_with([[0.8, 0.95], [0.95, 0]]))
    assert exits.tolist() == [[1], [0]]


@pytest.mark.parametrize("given", ["0.9,0.9", "0.9", 0.9])
def test_a_request_brings_its_own_thresholds_and_leaves_the_others_alone(served, given):
    model, server = served
    images = images_with([[0.8, 0.95]])
    assert answer(model, server, images, {"thresholds": given})[1] == [[1]]
    assert answer(model, server, images)[1] == [[0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.1,0.2,0.3", "3 thresholds for 2 exits"),
        ("", "0 thresholds for 2 exits"),
        ("1.5", "a threshold is 1.5"),
        ("nan", "a threshold is nan"),
        ("high", "thresholds are 'high'"),
        (True, "thresholds are True"),
    ],
)
def test_thresholds_that_do_not_fit_are_an_error_of_that_request(served, given, message):
    model, server = served
    server.calls.clear()
    (response,) = model.execute([request(images_with([[0, 0]]), {"thresholds": given})])
    assert message in response.error().message()
    assert response.error().code == TritonError.INVALID_ARG
    assert not server.calls


def test_a_configuration_whose_thresholds_do_not_fit_is_not_loaded(bundle, tmp_path):
    write_triton(bundle, tmp_path / "models")
    with pytest.raises(ServerError, match=r"config\.pbtxt: 3 thresholds for 2 exits"):
        load_model(tmp_path / "models", Server(tmp_path / "models"), thresholds="0,0,0")


def test_servers_without_parameters_of_requests_use_those_of_the_configuration(served):
    model, _ = served
    bare = SimpleNamespace(tensors=[Tensor("image", images_with([[0.8, 0.95]]))])
    (response,) = model.execute([bare])
    assert response.tensors[1].array == [[0]]


# ------------------------------------------------------------------------------ failures, memory


def test_the_error_of_a_segment_is_handed_on(served, monkeypatch):
    model, server = served
    server.failing = "tiny_segment_1"
    try:
        early, late = model.execute(
            [request(images_with([[1, 0]])), request(images_with([[0, 0]]))]
        )
    finally:
        server.failing = None
    assert not early.has_error()  # it never came to the segment that fails
    assert late.error().message() == "segment tiny_segment_1: out of memory"
    assert late.error().code == TritonError.INTERNAL
    assert not late.tensors


def test_the_hidden_state_of_images_that_all_stay_is_handed_on_without_a_copy(served, monkeypatch):
    model, server = served
    given = []
    run = server.run

    def recording(*args):
        response = run(*args)
        given.append({each.name(): each.array for each in response.tensors})
        return response

    monkeypatch.setattr(server, "run", recording)
    for gates in ([[0, 0]], [[0, 0], [NAN, 0]]):
        given.clear()
        answer(model, server, images_with(gates))
        taken = [inputs[0].array for _, _, inputs in server.calls]
        assert taken[1] is given[0]["hidden_0"]
        assert taken[2] is given[1]["hidden_1"]


class CudaRuntime:
    """cudaMemcpy on memory of the host, which the tensors pretend to be in the device's."""

    def __init__(self, status=0):
        self.status, self.copied = status, []

    def cudaMemcpy(self, target, source, size, kind):  # noqa: N802  # CUDA's name
        assert kind == 2  # device to host
        self.copied.append(size.value)
        ctypes.memmove(target, source, size.value)
        return self.status


@pytest.fixture
def on_device(served, monkeypatch):
    model, server = served
    monkeypatch.setattr(server, "device", True)
    monkeypatch.setattr(model, "_cuda", CudaRuntime())
    return model, server


def test_from_device_memory_come_gates_and_the_logits_of_images_that_leave(on_device):
    model, server = on_device
    images = images_with([[0, 1]])
    logits, exits = answer(model, server, images)
    np.testing.assert_allclose(logits, early_exit(images, THRESHOLDS)[0], rtol=1e-5)
    assert exits == [[1]]
    four = np.dtype(np.float32).itemsize
    assert model._cuda.copied == [four, four, CLASSES * four]  # gate, gate, logits; no hidden state
    assert server.calls[1][2][0].device
    assert server.preferred is None  # tensors stay where the segment left them


def test_a_batch_in_device_memory_is_compacted(on_device):
    model, server = on_device
    images = images_with([[0, 0], [1, 0], [0, 1], [NAN, NAN]])
    logits, exits = answer(model, server, images)
    expected_logits, expected_exits = early_exit(images, THRESHOLDS)
    np.testing.assert_array_equal(exits, expected_exits)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5)


def test_a_copy_that_cuda_refuses_is_the_error_of_that_request(on_device):
    model, _ = on_device
    model._cuda.status = 700
    (response,) = model.execute([request(images_with([[0, 0]]))])
    assert "CUDA error 700" in response.error().message()


def test_without_a_cuda_runtime_outputs_are_asked_for_in_host_memory(served):
    model, server = served
    answer(model, server, images_with([[0, 0]]))
    assert server.preferred == ("preferred", 0, 0)


def test_device_memory_that_cannot_be_read_is_told(served, monkeypatch):
    model, server = served
    monkeypatch.setattr(server, "device", True)  # as servers before 23.04, which place as they like
    (response,) = model.execute([request(images_with([[0, 0]]))])
    assert "no libcudart was found" in response.error().message()


# ------------------------------------------------------------------------------ several tensors


def leaving_early(whole, images, thresholds):
    """Image by image: logits and exit, from the whole graph in onnx's own implementation."""
    logits, exits = [], []
    for image in images:
        found = run_reference(whole, {"image": image[None]})
        values = dict(zip([o.name for o in whole.graph.output], found, strict=True))
        fired = [i for i, bar in enumerate(thresholds) if values[f"gate_{i}"][0] >= bar]
        exits.append([fired[0] if fired else len(thresholds)])
        name = f"logits_{fired[0]}" if fired else "logits"
        logits.append(values[name][0])
    return np.array(logits), np.array(exits)


@pytest.fixture(scope="module", params=[1, BATCH])
def skipping(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("skipping")
    manifest, whole = write_skipping_bundle(folder / "bundle", batch=request.param)
    write_triton(folder / "bundle", folder / "models")
    server = Server(folder / "models")
    return manifest, whole, load_model(folder / "models", server), server


@pytest.mark.parametrize("device", [False, True])
def test_tensors_of_several_types_travel_with_their_images(skipping, device, monkeypatch):
    manifest, whole, model, server = skipping
    taken = [[spec.name for spec in each.inputs] for each in manifest.segments]
    dtypes = {spec.dtype for each in manifest.segments for spec in each.gives}
    assert dtypes == {"float32", "int64", "bool"}
    assert "image" in taken[2]  # which reads it again, when others have left
    if device:
        monkeypatch.setattr(server, "device", True)
        monkeypatch.setattr(model, "_cuda", CudaRuntime())
    gates = [[0, 0], [1, 0], [0, 1], [0, 0], [0.2, 0.1], [0.4, 0.3], [0, 0.2]]
    for images in np.split(images_of(gates), 1 if manifest.batch[1] > 1 else len(gates)):
        logits, exits = answer(model, server, images)
        expected_logits, expected_exits = leaving_early(whole, images, manifest.thresholds)
        np.testing.assert_array_equal(exits, expected_exits)
        np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
        for (name, _, inputs), names in zip(server.calls, taken, strict=False):
            assert [each.name() for each in inputs] == names, name
