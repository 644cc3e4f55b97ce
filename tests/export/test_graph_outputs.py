"""Names of outputs, on graphs written by hand, in ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.export.graph_outputs import name_outputs_

ort = pytest.importorskip("onnxruntime")
X = np.array([[1.0, -2.0]], dtype=np.float32)


def graph_of(nodes, outputs):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in outputs]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2])
    weight = numpy_helper.from_array(np.array([[3.0, 5.0]], np.float32), "weight")
    graph = helper.make_graph(nodes, "graph", [image], values, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def results(proto):
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {"image": X})
    return {name: each.tolist() for name, each in zip(names, found, strict=True)}


def nodes():
    return [
        helper.make_node("Mul", ["image", "weight"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["relu"]),
        helper.make_node("Neg", ["relu"], ["neg"]),
    ]


SCALED, RELU, NEG = [[3.0, -10.0]], [[3.0, 0.0]], [[-3.0, -0.0]]


@pytest.mark.parametrize(
    ("outputs", "names", "values"),
    [
        pytest.param(["neg"], ["logits"], [NEG], id="one"),
        pytest.param(["neg", "relu"], ["relu", "neg"], [NEG, RELU], id="names swapped"),
        pytest.param(["neg"], ["scaled"], [NEG], id="an inner value has it"),
        pytest.param(["neg"], ["weight"], [NEG], id="a weight has it"),
        pytest.param(["relu", "relu"], ["a", "b"], [RELU, RELU], id="given twice"),
        pytest.param(["neg", "image"], ["a", "b"], [NEG, X.tolist()], id="an input"),
        pytest.param(["neg", "weight"], ["weight", "b"], [NEG, [[3.0, 5.0]]], id="a weight"),
        pytest.param(["relu"], ["relu"], [RELU], id="it has it"),
    ],
)
def test_outputs_get_their_names_and_keep_their_values(outputs, names, values):
    proto = graph_of(nodes(), outputs)
    name_outputs_(proto, names)
    assert results(proto) == dict(zip(names, values, strict=True))


def test_values_inside_a_branch_are_renamed_too():
    branches = []
    for operator in ("Relu", "Neg"):
        given = helper.make_tensor_value_info(operator, TensorProto.FLOAT, [1, 2])
        branches.append(
            helper.make_graph(
                [helper.make_node(operator, ["scaled"], [operator])], "b", [], [given]
            )
        )
    choose = helper.make_node(
        "If", ["yes"], ["chosen"], then_branch=branches[0], else_branch=branches[1]
    )
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    proto = graph_of([*nodes()[:1], yes, choose], ["chosen"])
    name_outputs_(proto, ["scaled"])
    assert results(proto) == {"scaled": RELU}
