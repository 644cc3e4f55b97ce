from functools import reduce

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compress.errors import UnsupportedModelError
from compress.export.lint import lint
from compress.export.lowering import lowered
from compress.export.targets import TARGETS, target
from tests.export.exported_graphs import MODULES, example, export, exported
from tests.export.real_parser import VERSIONS, ask
from tests.export.small_graphs import (
    graph,
    kinds,
    node,
    run_onnxruntime,
    run_reference,
    valid_graph,
    value,
)

QUICK = "distilled"  # an export takes seconds
NAMES = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODULES]
OLDEST, OLD, NEW = target("jetpack5.1"), target("jetpack6.0"), target("tensorrt10")
X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


@pytest.mark.parametrize("target_name", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_exports_compute_the_same_and_pass_the_lint(name, target_name):
    before, chosen, feed = exported(name), target(target_name), example(name)
    after = lowered(before, chosen)
    assert after.opset_import[0].version == chosen.opset
    assert [f for f in lint(after, chosen) if f.level == "error"] == []
    # half precision: sums in float32 are rounded once, where one node for all may round elsewhere
    bar = 2e-3 if name.endswith("fp16") else 1e-6
    for old, new in zip(run_onnxruntime(before, feed), run_onnxruntime(after, feed), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_allclose(new, old, rtol=bar, atol=bar * np.abs(old).max())


@pytest.mark.parametrize("name", NAMES)
def test_lowering_twice_changes_nothing(name):
    for chosen in TARGETS.values():
        once = lowered(exported(name), chosen)
        assert lowered(once, chosen).SerializeToString() == once.SerializeToString()


def test_the_given_graph_is_left_as_it_is():
    before = exported(QUICK)
    copy = before.SerializeToString()
    lowered(before, OLDEST)
    assert before.SerializeToString() == copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "distilled-fp16"])
def test_exporting_twice_gives_the_same_bytes(name):
    first, second = (lowered(export(name), OLDEST).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", NAMES[:5])
def test_blocks_share_their_dft_matrices(name):
    after = lowered(exported(name), NEW)
    constants = {tensor.name for tensor in after.graph.initializer}
    on_the_left = [
        n.input[0] for n in after.graph.node if n.op_type == "MatMul" and n.input[0] in constants
    ]
    assert len(on_the_left) == 2 * 4
    assert len(set(on_the_left)) == 4
    contents = [(t.data_type, *t.dims, t.raw_data) for t in after.graph.initializer]
    assert len(set(contents)) == len(contents)


def test_layer_normalization_stays_where_it_is_known():
    assert kinds(lowered(exported(QUICK), OLD)).count("LayerNormalization") == 5
    assert kinds(lowered(exported(QUICK), NEW)).count("LayerNormalization") == 5
    oldest = kinds(lowered(exported(QUICK), OLDEST))
    assert "LayerNormalization" not in oldest
    assert oldest.count("Sqrt") == 5


def test_a_second_implementation_agrees():
    feed = {name: x[:2] for name, x in example(QUICK).items()}
    wanted = run_reference(exported(QUICK), feed)
    for old, new in zip(wanted, run_reference(lowered(exported(QUICK), OLDEST), feed), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_parser_takes_every_lowered_graph(version, tmp_path):
    for name in MODULES:
        for target_name in ("jetpack5.1", "jetpack6.0", "tensorrt-rtx"):
            path = tmp_path / f"{name}.{target_name}.onnx"
            onnx.save(lowered(exported(name), target(target_name)), path)
    errors, _ = ask(version, files=sorted(tmp_path.iterdir()))
    assert {path: found for path, found in errors.items() if found} == {}
    assert len(errors) == 3 * len(MODULES)


def test_nodes_are_sorted_and_what_nobody_reads_goes():
    made = graph(
        [
            node("Add", "b same", "y"),
            node("Neg", "x", "unread"),
            node("Exp", "unread", "unread_too"),
            helper.make_node("Constant", [], ["c"], value_float=2.0),
            node("Mul", "a c", "b"),
            node("Add", "x other", "a"),
        ],
        [value("x", ["n", 3, 8])],
        [value("y", ["n", 3, 8])],
        same=np.ones(8, np.float32),
        other=np.ones(8, np.float32),
        lonely=np.zeros(3, np.float32),
    )
    made.graph.node[0].doc_string = "from my laptop"
    after = lowered(made, NEW)
    assert kinds(after) == ["Add", "Mul", "Add"]
    assert [t.name for t in after.graph.initializer] == ["same", "c"]
    assert len({n.name for n in after.graph.node}) == 3
    assert b"laptop" not in after.SerializeToString()
    np.testing.assert_allclose(run_reference(after, {"x": X})[0], (X + 1) * 2 + 1)


def test_equal_bytes_of_another_type_or_shape_are_not_shared():
    made = valid_graph(
        [node("Add", "x row", "a"), node("Add", "a column", "b"), node("Gather", "b zero", "y")],
        [value("x", [1, 1])],
        [value("y", [1, 2])],
        row=np.zeros((1, 2), np.float32),
        column=np.zeros((2, 1), np.float32),
        zero=np.zeros((1,), np.int64),
    )
    assert len(lowered(made, NEW).graph.initializer) == 3


def test_a_reshape_without_zeros_needs_no_allowzero():
    made = valid_graph(
        [node("Reshape", "x flat", "y", allowzero=1)],
        [value("x", ["n", 3, 8])],
        [value("y", ["n", 24])],
        flat=np.array([-1, 24], np.int64),
    )
    assert not lowered(made, OLD).graph.node[0].attribute


def test_graphs_inside_a_node_keep_what_they_read():
    def branch(name, kind):
        return helper.make_graph(
            [node(kind, f"x {name}_c", name)], name, [], [value(name, ["n", 3, 8])]
        )

    made = valid_graph(
        [
            node("ReduceMax", "x", "m", keepdims=0),
            node("Greater", "m zero", "positive"),
            node(
                "If",
                "positive",
                "y",
                then_branch=branch("p", "Add"),
                else_branch=branch("q", "Mul"),
            ),
        ],
        [value("x", ["n", 3, 8])],
        [value("y", ["n", 3, 8])],
        zero=np.float32(0),
        p_c=np.float32(3),
        q_c=np.float32(3),
    )
    after = lowered(made, target("onnxruntime"))
    for x in (X, -np.abs(X)):
        wanted = x + 3 if x.max() > 0 else x * 3
        np.testing.assert_allclose(run_onnxruntime(after, {"x": x})[0], wanted)


def test_a_circle_is_an_error():
    made = graph(
        [node("Add", "x b", "a"), node("Neg", "a", "b")], [value("x", [1])], [value("b", [1])]
    )
    with pytest.raises(UnsupportedModelError, match="needs its own result"):
        lowered(made, NEW)


def test_a_damaged_graph_is_an_error():
    made = graph([node("Add", "x nowhere", "y")], [value("x", [1])], [value("y", [1])])
    with pytest.raises(UnsupportedModelError, match=r"tensorrt10 \(TensorRT 10\).*nowhere"):
        lowered(made, NEW)


OPERATIONS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_and_any_repetition_of_constants_computes_the_same(data):
    """Nodes in any order, constants from a few values, so that many are equal."""
    size = data.draw(st.integers(1, 8))
    x = np.array([0.5, -2.0], np.float32)
    values, constants, nodes = {"x": x}, {}, []
    for i in range(size):
        kind = data.draw(st.sampled_from(sorted(OPERATIONS)))
        left = data.draw(st.sampled_from(sorted(values)))
        number = np.float32(data.draw(st.sampled_from([0.5, 1.0, 2.0])))
        constants[f"c{i}"] = number
        nodes.append(node(kind, f"{left} c{i}", f"t{i}"))
        values[f"t{i}"] = OPERATIONS[kind](values[left], number)
    shuffled = data.draw(st.permutations(nodes))
    made = graph(shuffled, [value("x", [2])], [value(f"t{size - 1}", [2])], **constants)
    after = lowered(made, OLDEST)
    np.testing.assert_array_equal(run_reference(after, {"x": x})[0], values[f"t{size - 1}"])
    assert len(after.graph.initializer) <= 3
    read = reduce(lambda names, n: names | {*n.input}, after.graph.node, set())
    assert {t.name for t in after.graph.initializer} <= read
