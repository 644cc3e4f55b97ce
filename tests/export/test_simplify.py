import logging

import numpy as np
import onnx
import pytest

from compress.export import simplify
from compress.export.simplify import simplified
from tests.export.exported_graphs import example, exported
from tests.export.small_graphs import FLOAT, INT64, graph, kinds, node, run_onnxruntime, value

X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)


def foldable():
    """Reshape to a shape that is computed from constants alone."""
    nodes = [
        node("Concat", "a b", "shape", axis=0),
        node("Reshape", "x shape", "r"),
        node("Relu", "r", "y"),
    ]
    return graph(
        nodes,
        [value("x", [2, 3, 4])],
        [value("y", [2, 12])],
        a=np.array([2], np.int64),
        b=np.array([12], np.int64),
    )


def replaced(monkeypatch, change):
    """Let onnxsim return a graph that `change` spoilt."""
    import onnxsim

    def fake(proto, **_):
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        change(other)
        return other, True

    monkeypatch.setattr(onnxsim, "simplify", fake)


def test_constants_are_folded():
    found, kept = simplified(foldable(), {"x": X})
    assert kept
    assert kinds(found) == ["Reshape", "Relu"]
    np.testing.assert_array_equal(
        run_onnxruntime(found, {"x": X})[0], np.maximum(X, 0).reshape(2, 12)
    )


def test_linear_layers_of_a_segment_stay(monkeypatch, caplog):
    before, feed = exported("distilled"), example("distilled")
    found, kept = simplified(before, feed)
    assert kept
    assert sorted(kinds(found)) == sorted(kinds(before))

    # What the skipped pass would do, and that it would not get through:
    monkeypatch.setattr(simplify, "HARMFUL", ())
    caplog.set_level(logging.INFO, "compress")
    found, kept = simplified(before, feed)
    assert not kept
    assert found is before
    assert "not taken" in caplog.text


def test_reshape_gemm_reshape_with_as_many_nodes_is_not_taken():
    """Two nodes, MatMul and Add, may become no more than two, but not a Gemm between Reshapes."""
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y"), node("Neg", "y", "n")]
    weights = {"w": np.ones((4, 5), np.float32), "b": np.ones(5, np.float32)}
    before = graph(nodes, [value("x", [2, 3, 4])], [value("n", [2, 3, 5])], **weights)
    shapes = {"flat": np.array([6, 4], np.int64), "full": np.array([2, 3, 5], np.int64)}
    nodes = [
        node("Reshape", "x flat", "f"),
        node("Gemm", "f w b", "g"),
        node("Reshape", "g full", "n"),
    ]
    after = graph(nodes, [value("x", [2, 3, 4])], [value("n", [2, 3, 5])], **weights, **shapes)
    assert simplify._worse(before, after) == "it turns Linear layers into Reshape, Gemm, Reshape"


def test_other_numbers_are_not_taken(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "compress")
    replaced(monkeypatch, lambda proto: setattr(proto.graph.node[-1], "op_type", "Neg"))
    before = foldable()
    assert simplified(before, {"x": X}) == (before, False)
    assert "output y differs by more than 1e-05" in caplog.text


def test_a_graph_with_other_outputs_is_not_taken(monkeypatch, caplog):
    def rename(proto):
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = "z"

    caplog.set_level(logging.INFO, "compress")
    replaced(monkeypatch, rename)
    assert not simplified(foldable(), {"x": X})[1]
    assert "changes an output" in caplog.text


def test_a_graph_with_more_nodes_is_not_taken(monkeypatch):
    replaced(monkeypatch, lambda p: p.graph.node.append(node("Neg", "r", "unread")))
    assert not simplified(foldable(), {"x": X})[1]


def test_a_broken_result_is_not_taken(monkeypatch):
    replaced(monkeypatch, lambda proto: setattr(proto.graph.node[-1], "op_type", "NoSuchThing"))
    assert not simplified(foldable(), {"x": X})[1]


def test_a_failure_of_onnxsim_leaves_the_graph(monkeypatch, caplog):
    import onnxsim

    def fail(*_, **__):
        raise RuntimeError("no supported data type")

    caplog.set_level(logging.INFO, "compress")
    monkeypatch.setattr(onnxsim, "simplify", fail)
    before = foldable()
    assert simplified(before, {"x": X}) == (before, False)
    assert "no supported data type" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        ([1, np.nan, np.inf], [1, np.nan, np.inf], True),
        ([1, np.nan], [1, 2], False),
        ([1, 2], [1, np.nan], False),
        ([np.inf, 2], [-np.inf, 2], False),
        ([0, 0], [0, 0], True),
        ([0, 0], [0, 1e-30], False),
    ],
)
def test_numbers_that_are_none(old, new, equal):
    arrays = np.array(old, np.float32), np.array(new, np.float32)
    assert simplify._equal(*arrays, 1e-5) is equal


def test_the_given_graph_is_left_as_it_is():
    before = foldable()
    copy = before.SerializeToString()
    simplified(before, {"x": X})
    assert before.SerializeToString() == copy


def test_integers_are_compared_too():
    made = graph(
        [node("Shape", "x", "y")], [value("x", [2, 3, 4], FLOAT)], [value("y", [3], INT64)]
    )
    found, _ = simplified(made, {"x": X})
    np.testing.assert_array_equal(run_onnxruntime(found, {"x": X})[0], [2, 3, 4])
