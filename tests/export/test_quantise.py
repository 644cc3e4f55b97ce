import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.data.digits import load_digits
from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.export.graph import graph_from_module
from compress.export.quantise import faster_than, linear_nodes, quantised
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.global_filter import with_matrix_filters
from tools.tensorrt_fixtures import is_installed

ROOT = Path(__file__).parents[2]
OUTPUTS = ("hidden", "logits", "gate")
CROSSING = ("hidden",)


class FirstSegment(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        hidden = self.network.run_blocks(self.network.embed(image), 0, 2)
        logits, gate = self.network.exit_outputs(0, hidden)
        return hidden, logits, torch.sigmoid(gate)


class Scene:
    """A segment of a network that can read digits, its int8 form, and images it has not seen."""

    def __init__(self):
        torch.manual_seed(0)
        data = load_digits(image_size=16)
        config = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 3, "num_classes": 10}
        network = GFNetDynn(**config, exits=[1])
        _train(network, data)
        self.graph = graph_from_module(
            FirstSegment(with_matrix_filters(network)).eval(),
            torch.zeros(2, 3, 16, 16),
            input_name="image",
            output_names=OUTPUTS,
        )
        splits = data.splits
        self.images = data.normalize(splits["test"].images(torch.arange(400))).numpy()
        self.labels = splits["test"].labels[:400].numpy()
        calibration = splits["calibration"].batches(64)
        self.feeds = [{"image": data.normalize(images).numpy()} for images, _ in calibration]
        self.int8 = quantised(self.graph, self.feeds, crossing=CROSSING)


def _train(network, data, rate=1e-2, epochs=7, batch=32):
    split = data.splits["train"]
    images, labels = data.normalize(split.images(torch.arange(len(split)))), split.labels
    optimizer = torch.optim.Adam(network.parameters())
    steps = epochs * -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(batch):
            logits, _ = network.forward_all(images[part])
            loss = F.cross_entropy(logits.flatten(0, 1), labels[part].repeat_interleave(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


@pytest.fixture(scope="module")
def scene():
    return Scene()


def run(proto, feed, outputs=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feed)


def tensors(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def makers(proto):
    return {output: node for node in proto.graph.node for output in node.output}


def axis_of(node):
    return next((a.i for a in node.attribute if a.name == "axis"), None)


def content_of(proto):
    return proto.SerializeToString(deterministic=True)


def test_the_linear_layers_and_nothing_else(scene):
    by_name = {node.name: node for node in scene.graph.graph.node}
    known = tensors(scene.graph)
    shapes = [known[by_name[name].input[1]].shape for name in linear_nodes(scene.graph, CROSSING)]
    # The patches, and fc1 and fc2 of two blocks; no filter, head or gate.
    assert shapes == [(32, 3, 4, 4), (32, 128), (128, 32), (32, 128), (128, 32)]
    made_by = makers(scene.int8)
    fed = [
        node
        for node in scene.int8.graph.node
        if any(made_by[i].op_type == "DequantizeLinear" for i in node.input if i in made_by)
    ]
    assert [node.name for node in fed] == linear_nodes(scene.graph, CROSSING)


def test_the_form_that_tensorrt_reads(scene):
    known, made_by = tensors(scene.int8), makers(scene.int8)
    pairs = [n for n in scene.int8.graph.node if n.op_type.endswith("QuantizeLinear")]
    pairs += [n for n in scene.int8.graph.node if n.op_type == "DequantizeLinear"]
    assert len({n.name for n in pairs}) == 5 + 10  # Q of activations, DQ of both inputs
    for node in pairs:
        zero = known[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert {node.domain for node in scene.int8.graph.node} == {""}
    assert not [n for n in scene.int8.graph.node if n.op_type.startswith(("QLinear", "QGemm"))]
    assert [(o.domain, o.version) for o in scene.int8.opset_import] == [("", 18)]
    for node in scene.int8.graph.node:
        if node.op_type == "Conv":  # its bias stays float: int32 is refused
            assert known[node.input[2]].dtype == np.float32
    results = {output.name for output in scene.int8.graph.output}
    assert not [o for o in results if made_by[o].op_type == "DequantizeLinear"]


def test_weights_are_int8_with_a_scale_per_output_channel(scene):
    before, after = tensors(scene.graph), tensors(scene.int8)
    by_name = {node.name: node for node in scene.graph.graph.node}
    for name in linear_nodes(scene.graph, CROSSING):
        weight = by_name[name].input[1]
        assert weight not in after  # or the file would hold it twice
        made_by = makers(scene.int8)[f"{weight}_DequantizeLinear_Output"]
        integers, scale = (after[each] for each in made_by.input[:2])
        channels = 0 if by_name[name].op_type == "Conv" else 1
        assert axis_of(made_by) == channels
        assert integers.dtype == np.int8
        rest = tuple(i for i in range(integers.ndim) if i != channels)
        largest = np.abs(before[weight]).max(axis=rest)
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
        wide = np.expand_dims(scale, rest)
        assert (np.abs(before[weight] - integers * wide) <= wide * 0.501).all()


def test_activations_are_scaled_by_the_largest_value_of_the_calibration(scene):
    watched = onnx.ModelProto()
    watched.CopyFrom(scene.graph)
    by_name = {node.name: node for node in watched.graph.node}
    inputs = [by_name[name].input[0] for name in linear_nodes(scene.graph, CROSSING)[1:]]
    watched.graph.output.extend(
        helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in inputs
    )
    found = [run(watched, feed, inputs) for feed in scene.feeds]
    known = tensors(scene.int8)
    largest = max(np.abs(feed["image"]).max() for feed in scene.feeds)
    assert known["image_scale"] == pytest.approx(largest / 127)
    for i, name in enumerate(inputs):
        largest = max(np.abs(values[i]).max() for values in found)
        assert known[f"{name}_scale"] == pytest.approx(largest / 127, rel=1e-5)


def test_digits_are_read_as_before(scene):
    feed = {"image": scene.images}
    hidden, logits, gate = run(scene.graph, feed)
    found = run(scene.int8, feed)
    assert (logits.argmax(1) == scene.labels).mean() > 0.85  # the network can read
    assert (found[1].argmax(1) == logits.argmax(1)).mean() >= 0.98
    for name, a, b, bar in (("hidden", hidden, found[0], 0.03), ("logits", logits, found[1], 0.03)):
        error = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert 1e-4 < error < bar, name  # below, nothing was quantised
    assert np.abs(gate - found[2]).max() < 0.05


def test_float_weights_for_tensorrt_8_compute_the_same(scene):
    paired = quantised(scene.graph, scene.feeds, crossing=CROSSING, float_weights=True)
    by_name = {node.name: node for node in scene.graph.graph.node}
    weights = {by_name[name].input[1] for name in linear_nodes(scene.graph, CROSSING)}
    before, after = tensors(scene.graph), tensors(paired)
    readers = {n.input[0]: n.op_type for n in paired.graph.node if n.input[0] in weights}
    assert readers == dict.fromkeys(weights, "QuantizeLinear")
    for weight in weights:
        np.testing.assert_array_equal(after[weight], before[weight])
    feed = {"image": scene.images[:32]}
    for a, b in zip(run(scene.int8, feed), run(paired, feed), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_equal_arguments_give_equal_bytes_and_leave_nothing_behind(
    scene, tmp_path, monkeypatch, capfd, caplog
):
    given = content_of(scene.graph)
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    again = quantised(scene.graph, scene.feeds, crossing=CROSSING)
    assert content_of(again) == content_of(scene.int8)
    assert content_of(scene.graph) == given
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert not again.metadata_props
    assert again.producer_name == scene.graph.producer_name


def test_logging_that_nobody_set_up_stays_so(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    quantised(classifier(), FEEDS)
    assert logging.getLogger().handlers == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_bytes_do_not_depend_on_the_hash_seed(scene, tmp_path, seed):
    onnx.save(scene.graph, tmp_path / "in.onnx")
    np.savez(tmp_path / "feeds.npz", *(feed["image"] for feed in scene.feeds))
    code = (
        "import numpy, onnx\n"
        "from compress.export.quantise import quantised\n"
        "feeds = [{'image': x} for x in numpy.load('feeds.npz').values()]\n"
        "result = quantised(onnx.load('in.onnx'), feeds, crossing=['hidden'])\n"
        "open('out.onnx', 'wb').write(result.SerializeToString(deterministic=True))\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "out.onnx").read_bytes() == content_of(scene.int8)


TENSORRT_BUILD = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
network = builder.create_network(0 if strong is None else 1 << int(strong))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
layers = [network.get_layer(i) for i in range(network.num_layers)]
products = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)
read_by = {layer.get_input(i).name: layer for layer in layers for i in range(layer.num_inputs)
           if layer.get_input(i) is not None}
fed = [read_by[layer.get_output(0).name].type in products for layer in layers
       if layer.type == trt.LayerType.DEQUANTIZE]
assert len(fed) == 10, fed
if trt.__version__.startswith("1.4"):  # asks a GPU for its profile once there is an int8 layer
    sys.exit(print("read"))
profile = builder.create_optimization_profile()
profile.set_shape("image", *[(n, 3, 16, 16) for n in (1, 1, 4)])
config = builder.create_builder_config()
config.add_optimization_profile(profile)
assert builder.build_serialized_network(network, config) is not None
print("built")
"""


@pytest.mark.slow
@pytest.mark.parametrize("float_weights", [False, True])
@pytest.mark.parametrize("version", ["rtx-1.4", "rtx-1.7"])
def test_tensorrt_reads_it_and_builds_it(scene, tmp_path, version, float_weights):
    folder = ROOT / ".venv" / "tensorrt"
    if not is_installed(folder, version):
        pytest.skip("needs: python tools/tensorrt_fixtures.py")
    path = tmp_path / "int8.onnx"
    onnx.save(
        quantised(scene.graph, scene.feeds, crossing=CROSSING, float_weights=float_weights), path
    )
    done = subprocess.run(
        [sys.executable, "-c", TENSORRT_BUILD, str(path)],
        env={**os.environ, "PYTHONPATH": str(folder / version)},
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = "read\n" if version == "rtx-1.4" else "built\n"
    assert done.stdout.endswith(wanted), done.stderr + done.stdout


def model_of(nodes, initializers, outputs, *, opset=17, image=(4,)):
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *image])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in initializers.items()
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def classifier(**options):
    """Two Gemm layers, as torch writes Linear behind a flattened image."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "w1", "b1"], ["logits"], transB=1),
    ]
    return model_of(nodes, {"w0": (6, 4), "b0": (6,), "w1": (3, 6), "b1": (3,)}, ["logits"])


FEEDS = [{"x": np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)}]


def test_a_gemm_with_its_weight_transposed_and_nodes_without_names():
    graph = classifier()
    assert linear_nodes(graph) == ["Gemm_0"]
    int8 = quantised(graph, FEEDS)
    known = tensors(int8)
    weight = next(n for n in int8.graph.node if n.input[0] == "w0_quantized")
    assert axis_of(weight) == 0
    assert known[weight.input[1]].shape == (6,)
    assert {name for name, value in known.items() if value.dtype == np.float32} == {
        "b0", "w1", "b1", "x_scale", "w0_scale",
    }  # fmt: skip
    (wanted,), (found,) = run(graph, FEEDS[0]), run(int8, FEEDS[0])
    assert np.linalg.norm(wanted - found) < 0.02 * np.linalg.norm(wanted)


def test_the_last_layers_are_quantised_where_they_are_named():
    int8 = quantised(classifier(), FEEDS, nodes=["Gemm_2"])
    assert {name for name in tensors(int8) if name.endswith("_quantized")} == {"w1_quantized"}


def test_hidden_states_are_no_result():
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["hidden"], "body"),
        helper.make_node("MatMul", ["hidden", "w1"], ["logits"], "head"),
        helper.make_node("MatMul", ["logits", "w2"], ["gate_logit"], "gate"),
        helper.make_node("Sigmoid", ["gate_logit"], ["gate"]),
    ]
    graph = model_of(nodes, {"w0": (4, 4), "w1": (4, 3), "w2": (3, 1)}, OUTPUTS)
    assert linear_nodes(graph, CROSSING) == ["body"]
    with pytest.raises(UnsupportedModelError, match="no Linear layer"):
        quantised(graph, [{"x": np.ones((1, 4), np.float32)}])  # where `hidden` is a result too


def test_what_is_no_linear_layer():
    nodes = [
        helper.make_node("MatMul", ["w0", "x"], ["a"], "constant on the left"),
        helper.make_node("MatMul", ["a", "a"], ["b"], "no constant"),
        helper.make_node("MatMul", ["w0", "w0"], ["constant"], "two constants"),
        helper.make_node("MatMul", ["b", "stack"], ["c"], "a stack of matrices"),
        helper.make_node("Gemm", ["c", "w0", "b0"], ["d"], "beta", beta=0.5),
        helper.make_node("Gemm", ["d", "w0"], ["e"], "transposed", transA=1),
        helper.make_node("MatMul", ["e", "w0"], ["f"], "one"),
        helper.make_node("MatMul", ["f", "w0"], ["logits"], "the last"),
    ]
    graph = model_of(nodes, {"w0": (4, 4), "b0": (4,), "stack": (2, 4, 4)}, ["logits"])
    assert linear_nodes(graph) == ["one"]


def test_every_reader_has_a_pair_of_its_own():
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["x", "w1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["logits"]),
    ]
    int8 = quantised(model_of(nodes, {f"w{i}": (4, 4) for i in range(3)}, ["logits"]), FEEDS)
    read = [i for node in int8.graph.node if node.op_type != "QuantizeLinear" for i in node.input]
    made = [n.output[0] for n in int8.graph.node if n.op_type == "DequantizeLinear"]
    assert len(made) == 4
    assert [read.count(each) for each in made] == [1] * 4


def test_names_that_are_used_twice_or_taken():
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "MatMul_1"),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"], "same"),
        helper.make_node("MatMul", ["c", "w3"], ["logits"], "same"),
    ]
    graph = model_of(nodes, {f"w{i}": (4, 4) for i in range(4)}, ["logits"])
    assert linear_nodes(graph) == ["MatMul_1", "MatMul_1_", "MatMul_2"]


def two_layers(factor):
    """The second Linear layer takes values of the size of the factor."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["logits"]),
    ]
    graph = model_of(nodes, {f"w{i}": (4, 4) for i in range(3)}, ["logits"])
    first = graph.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(np.full((4, 4), factor, np.float32), first.name))
    return graph


@pytest.mark.parametrize(
    ("graph", "options", "error", "words"),
    [
        pytest.param(classifier(), {"feeds": []}, UserInputError, "without calib", id="no feeds"),
        pytest.param(classifier(), {"nodes": ["Gemm_7"]}, UserInputError, "Gemm_7", id="unknown"),
        pytest.param(classifier(), {"nodes": ["Relu_1"]}, UserInputError, "Relu_1", id="no layer"),
        pytest.param(classifier(), {"nodes": []}, UserInputError, "none", id="no nodes"),
        pytest.param(
            model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": (4, 4)}, ["y"]),
            {}, UnsupportedModelError, "no Linear layer", id="a last layer alone",
        ),
        pytest.param(
            model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": (4, 4)}, ["y"],
                     opset=12),
            {}, UnsupportedModelError, "opset 12", id="too old",
        ),
        pytest.param(
            classifier(), {"feeds": [{"image": np.zeros((1, 4), np.float32)}]},
            UnsupportedModelError, "cannot quantise", id="feeds of another graph",
        ),
        pytest.param(
            classifier(), {"feeds": [*FEEDS, {"x": np.full((1, 4), np.nan, np.float32)}]},
            UserInputError, "x of calibration feed 1", id="feeds that are not numbers",
        ),
        pytest.param(
            two_layers(np.nan), {}, UnsupportedModelError, "weights are numbers", id="NaN weights"
        ),
        pytest.param(two_layers(1e38), {}, CompressError, "overflows", id="overflow"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantised(graph, options, error, words):
    with pytest.raises(error, match=words):
        quantised(graph, options.pop("feeds", FEEDS), **options)


def chain(length):
    nodes = [
        helper.make_node("MatMul", ["x" if i == 0 else f"h{i}", "w"], [f"h{i + 1}"])
        for i in range(length)
    ]
    nodes[-1].output[0] = "logits"
    return model_of(nodes, {"w": (64, 64)}, ["logits"], image=(64,))


def test_the_faster_graph_has_a_ratio_above_one():
    feed = {"x": np.zeros((64, 64), np.float32)}
    short, long = chain(2), chain(60)
    assert faster_than(short, long, feed, threads=1, max_seconds=0.1) > 3
    assert faster_than(long, short, feed, threads=1, max_seconds=0.1) < 1 / 3
