import numpy as np
import pytest
from onnx import helper

from compress.errors import UnsupportedModelError
from compress.export.lowering import lowered
from compress.export.targets import target
from tests.export.small_graphs import (
    HALF,
    INT64,
    graph,
    kinds,
    node,
    run_onnxruntime,
    run_reference,
    valid_graph,
    value,
)

OLD = target("jetpack6.0")
X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("as_node", [True, False])
def test_axes_move_into_the_attribute(kind, as_node):
    axes = np.array([-1, 1], np.int64)
    constant = helper.make_node("Constant", [], ["axes"], value_ints=[-1, 1])
    made = valid_graph(
        [*([constant] if as_node else []), node(kind, "x axes", "y", keepdims=0)],
        [value("x", ["n", 3, 8])],
        [value("y", ["n"])],
        **({} if as_node else {"axes": axes}),
    )
    after = lowered(made, OLD)
    (only,) = after.graph.node
    assert list(only.input) == ["x"]
    assert not after.graph.initializer
    np.testing.assert_allclose(
        run_reference(after, {"x": X})[0], run_reference(made, {"x": X})[0], rtol=1e-6
    )


def test_reduce_sum_keeps_its_axes_as_an_input():
    made = valid_graph(
        [node("ReduceSum", "x axes", "y")],
        [value("x", ["n", 3, 8])],
        [value("y", ["n", 3, 1])],
        axes=np.array([-1], np.int64),
    )
    assert list(lowered(made, OLD).graph.node[0].input) == ["x", "axes"]


@pytest.mark.parametrize(
    ("attributes", "axes", "shape", "kind"),
    [
        ({"noop_with_empty_axes": 1}, None, ["n", 3, 8], "Identity"),
        ({"noop_with_empty_axes": 1}, [], ["n", 3, 8], "Identity"),
        ({}, None, [1, 1, 1], "ReduceMean"),
        ({"noop_with_empty_axes": 0}, [], [1, 1, 1], "ReduceMean"),
        ({"noop_with_empty_axes": 1}, [2], ["n", 3, 1], "ReduceMean"),
    ],
)
def test_reductions_over_nothing_or_everything(attributes, axes, shape, kind):
    constants = {} if axes is None else {"axes": np.array(axes, np.int64)}
    made = graph(
        [node("ReduceMean", "x " + " ".join(constants), "y", **attributes)],
        [value("x", ["n", 3, 8])],
        [value("y", shape)],
        **constants,
    )
    after = lowered(made, OLD)
    assert kinds(after) == [kind]
    wanted = X if kind == "Identity" else X.mean(None if shape[0] == 1 else 2, keepdims=True)
    np.testing.assert_allclose(
        run_onnxruntime(after, {"x": X})[0],
        wanted.reshape(wanted.shape if wanted.ndim == 3 else (1, 1, 1)),
        rtol=1e-5,
        atol=1e-7,
    )


def test_uneven_parts_of_a_split_are_written_out():
    made = valid_graph(
        [node("Split", "x", "a b c", axis=2, num_outputs=3)],
        [value("x", ["n", 3, 8])],
        [value("a", ["n", 3, 3]), value("b", ["n", 3, 3]), value("c", ["n", 3, 2])],
    )
    after = lowered(made, OLD)
    found = run_onnxruntime(after, {"x": X})
    for part, wanted in zip(found, (X[..., :3], X[..., 3:6], X[..., 6:]), strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_an_attribute_that_says_the_default_is_dropped():
    image = [value("x", ["n", 3, 8, 8])]
    for step, size in ((1, 7), (2, 6)):
        made = valid_graph(
            [node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[step, step])],
            image,
            [value("y", ["n", 3, size, size])],
            opset=20,
            ir_version=9,
        )
        if step == 1:
            assert "dilations" not in [a.name for a in lowered(made, OLD).graph.node[0].attribute]
        else:
            with pytest.raises(
                UnsupportedModelError, match=r"opset 17: its attribute dilations is \[2, 2\]"
            ):
                lowered(made, OLD)


def unsayable():
    x, y = [value("x", ["n", 3, 8])], [value("y", ["n", 3, 8])]
    axes, pads = np.array([2], np.int64), np.array([0, 0], np.int64)
    half = [value("x", ["n", 3, 8], HALF)], [value("y", ["n", 3, 8], HALF)]
    scale = np.array(0.1, np.float16)
    yield "operator does not exist", graph([node("Mish", "x", "y")], x, y)
    yield (
        "it has 4 inputs",
        graph(
            [node("Pad", "x pads  axes".replace("  ", " zero "), "y")],
            x,
            y,
            pads=pads,
            axes=axes,
            zero=np.float32(0),
        ),
    )
    yield (
        "its input x is float16",
        graph(
            [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")],
            *half,
            opset=19,
            ir_version=9,
            s=scale,
        ),
    )
    yield (
        "its axes a are computed",
        graph(
            [node("ReduceMean", "x a", "y", keepdims=0)],
            [*x, value("a", [1], INT64)],
            [value("y", None)],
        ),
    )
    yield (
        "length that it splits is not known",
        graph([node("Split", "x", "y z", axis=0, num_outputs=2)], x, [*y, value("z", ["m", 3, 8])]),
    )


@pytest.mark.parametrize(("reason", "made"), [*unsayable()])
def test_what_the_older_opset_cannot_say_is_an_error(reason, made):
    with pytest.raises(UnsupportedModelError, match=f"cannot be written in opset 17: .*{reason}"):
        lowered(made, OLD)
