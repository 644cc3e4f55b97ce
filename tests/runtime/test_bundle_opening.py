"""What is told when a bundle is opened, before the first image: real ONNX files, real sessions."""

import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress import dispatch
from compress.errors import ToolchainError, UserInputError
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import read_manifest
from compress.runtime.onnx_wire import has_external_data
from tests.export.triton_bundles import images_with, save_segment, write_bundle


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def changed(bundle, number, change):
    model = onnx.load(bundle / f"segment_{number}.onnx")
    change(model.graph)
    save_segment(model, bundle, number)


def renamed(graph):
    graph.input[0].name = "pixels"
    graph.node.insert(0, helper.make_node("Identity", ["pixels"], ["image"]))


def typed(graph):
    graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        if "logits" in node.output:
            node.output[0] = "single"
    graph.node.append(helper.make_node("Cast", ["single"], ["logits"], to=TensorProto.DOUBLE))


def one_at_a_time(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def wider(graph):
    graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8


def one_output_less(graph):
    del graph.output[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, "takes pixels, its manifest says image"),
        (typed, r"gives logits tensor\(double\)"),
        (one_at_a_time, "takes image"),
        (wider, "takes image"),
        (one_output_less, "gives hidden_0, logits, its manifest says hidden_0, logits, gate"),
    ],
)
def test_a_file_that_does_not_fit_its_manifest_is_refused_at_opening(bundle, change, words):
    changed(bundle, 0, change)
    with pytest.raises(UserInputError, match=f"segment segment_0.onnx {words}") as caught:
        Dispatcher(bundle, "onnxruntime")
    assert "\n" not in str(caught.value)


def test_a_segment_that_fails_when_it_runs_is_a_sentence(bundle):
    def change(graph):
        (column,) = (each for each in graph.initializer if each.name == "column")
        column.CopyFrom(numpy_helper.from_array(np.array(99), "column"))

    changed(bundle, 1, change)
    with pytest.raises(ToolchainError, match=r"failed in segment_1.onnx \(.*indices") as caught:
        Dispatcher(bundle, "onnxruntime")
    assert "\n" not in str(caught.value)


def endless(graph):
    """Before anything else, a loop that goes on while a number that grows is above -1."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("Identity", ["going"], ["goes_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, None),
        ],
    )
    graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    graph.node.insert(0, helper.make_node("Loop", ["", "always", "image"], ["looped"], body=body))
    for node in list(graph.node)[1:]:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "looped"


def test_a_loop_without_end_is_ended(bundle, tmp_path, capsys):
    changed(bundle, 0, endless)
    np.save(tmp_path / "a.npy", images_with([[0, 0]])[0])
    start = time.monotonic()
    code = dispatch.main([str(bundle), str(tmp_path / "a.npy"), "--first-call-seconds", "0.5"])
    assert time.monotonic() - start < 20
    out, err = capsys.readouterr()
    assert (code, out) == (4, "")
    assert "did not end within 0.5 seconds" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(bundle, tmp_path, capsys, seconds):
    np.save(tmp_path / "a.npy", images_with([[0, 0]])[0])
    code = dispatch.main([str(bundle), str(tmp_path / "a.npy"), "--first-call-seconds", seconds])
    assert code == 3
    assert "--first-call-seconds is" in capsys.readouterr().err


def moved_out(model, folder):
    """Weights beside the file, as `onnx.save` writes those of large models."""
    onnx.save(
        model,
        folder / "segment_0.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )


def test_weights_in_other_files_are_refused_though_the_sha256_fits(bundle):
    model = onnx.load(bundle / "segment_0.onnx")
    moved_out(model, bundle)
    save_segment(onnx.load(bundle / "segment_0.onnx", load_external_data=False), bundle, 0)
    with pytest.raises(UserInputError, match=r"segment_0.onnx keeps weights in other files"):
        read_manifest(bundle)


def external(name):
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_constant(graph):
    graph.node.append(helper.make_node("Constant", [], ["c"], value=external("c")))


def in_subgraph(graph):
    inner = helper.make_graph([], "inner", [], [], [external("w")])
    graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def in_sparse(graph):
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("v"))


@pytest.mark.parametrize(
    "change", [in_constant, in_subgraph, in_sparse, lambda g: g.initializer.append(external("w"))]
)
def test_external_data_is_found_wherever_a_tensor_can_stand(bundle, change):
    path = bundle / "segment_0.onnx"
    assert not has_external_data(path)
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    assert has_external_data(path)


@pytest.mark.parametrize("cut", [1, 10, -1, -20])
def test_a_file_that_is_cut_off_is_no_onnx(bundle, cut):
    path = bundle / "segment_0.onnx"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cut off|longer than its message|no field"):
        has_external_data(path)


def test_a_provider_that_is_listed_and_does_not_start_is_passed_over(bundle, monkeypatch, caplog):
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    images = images_with([[0, 0], [1, 0]])
    with caplog.at_level("INFO", "compress"), Dispatcher(bundle, "onnxruntime") as dispatcher:
        assert dispatcher.backend.device == "cpu"
        assert dispatcher.run(images).exits.tolist() == [2, 0]
    (told,) = caplog.records
    assert told.getMessage() == (
        "ONNX Runtime runs on the CPU: CUDA does not start (the session has CPUExecutionProvider "
        "alone)"
    )
    caplog.clear()
    with Dispatcher(bundle, provider="cpu") as dispatcher:
        assert dispatcher.run(images).exits.tolist() == [2, 0]
    assert caplog.records == []


def test_a_provider_that_raises_when_it_starts_is_passed_over_and_prints_nothing(
    bundle, monkeypatch, capsys
):
    class Failing(onnxruntime.InferenceSession):
        def _create_inference_session(self, providers, *rest, **named):
            if "CUDAExecutionProvider" in providers:
                raise RuntimeError("CUDA failure 35:\ndriver too old")
            super()._create_inference_session(providers, *rest, **named)

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Failing)
    with Dispatcher(bundle) as dispatcher:
        assert dispatcher.backend.device == "cpu"
    assert capsys.readouterr().out == ""


def test_a_provider_that_was_asked_for_must_start(bundle):
    with pytest.raises(ToolchainError, match=r"CUDAExecutionProvider of ONNX Runtime .* not start"):
        Dispatcher(bundle, provider="cuda")
    with pytest.raises(UserInputError, match="provider is 'tpu'; expected one of cpu, cuda"):
        Dispatcher(bundle, provider="tpu")
    with pytest.raises(UserInputError, match="one of ONNX Runtime, and the backend is tensorrt"):
        Dispatcher(bundle, "tensorrt", provider="cpu")


def test_the_wire_is_read_without_the_onnx_package(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    read_manifest(bundle)
