import math

import numpy as np
import pytest
from onnx import helper

from compress.errors import UnsupportedModelError
from compress.export.lowering import lowered
from compress.export.targets import target
from tests.export.small_graphs import (
    FLOAT,
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

OLDEST, OLD, NEW = target("jetpack5.1"), target("jetpack6.0"), target("tensorrt10")
X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


def layer_norm(x, gamma, beta, axis, epsilon):
    axes = tuple(range(axis % x.ndim, x.ndim))
    x = x.astype(np.float64)
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon) * gamma + beta


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("axis", [-1, 1, 2, -2])
@pytest.mark.parametrize("with_beta", [True, False])
def test_layer_normalization_by_its_definition(axis, with_beta, opset):
    shape = X.shape[axis:]
    rng = np.random.default_rng(1)
    gamma, beta = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    constants = {"gamma": gamma, "beta": beta} if with_beta else {"gamma": gamma}
    made = valid_graph(
        [node("LayerNormalization", "x " + " ".join(constants), "y", axis=axis, epsilon=0.01)],
        [value("x", ["n", 3, 8])],
        [value("y", ["n", 3, 8])],
        opset=opset,
        **constants,
    )
    after = lowered(made, OLDEST)
    assert not {"LayerNormalization", "Pow"} & set(kinds(after))
    wanted = layer_norm(X, gamma, beta if with_beta else 0, axis, 0.01)
    for run in (run_reference, run_onnxruntime):
        np.testing.assert_allclose(run(after, {"x": X})[0], wanted, rtol=1e-5, atol=1e-6)


def half_layer_norm():
    gamma = np.linspace(0.5, 1.5, 8).astype(np.float16)
    return valid_graph(
        [node("LayerNormalization", "x gamma beta", "y")],
        [value("x", ["n", 3, 8], HALF)],
        [value("y", ["n", 3, 8], HALF)],
        opset=17,
        gamma=gamma,
        beta=gamma,
    )


def test_layer_normalization_of_large_halves_does_not_overflow():
    """300² is beyond the largest half; numpy computes in the types that stand in the graph."""
    x = (X * 300).astype(np.float16)
    after = lowered(half_layer_norm(), OLDEST)
    (found,) = run_reference(after, {"x": x})
    gamma = np.linspace(0.5, 1.5, 8).astype(np.float16).astype(np.float64)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, layer_norm(x, gamma, gamma, -1, 1e-5), rtol=1e-3, atol=1e-3)


def test_names_tell_what_must_not_run_in_half_precision():
    after = lowered(half_layer_norm(), OLDEST)
    casts = [n for n in after.graph.node if n.op_type == "Cast"]
    others = [n for n in after.graph.node if n.op_type != "Cast"]
    assert len(casts) == 2
    assert all("/fp32/" in n.name for n in others)
    assert after.graph.output[0].name == "y"


def test_mean_and_deviation_of_a_layer_normalization_cannot_be_had():
    made = graph(
        [node("LayerNormalization", "x gamma", "y mean")],
        [value("x", ["n", 3, 8])],
        [value("y", ["n", 3, 8]), value("mean", ["n", 3, 1])],
        opset=17,
        gamma=np.ones(8, np.float32),
    )
    with pytest.raises(
        UnsupportedModelError, match=r"node_LayerNormalization_y.*cannot be rewritten"
    ):
        lowered(made, OLDEST)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gelu_by_its_definition(form, dtype):
    made = valid_graph(
        [node("Gelu", "x", "y", approximate=form)],
        [value("x", ["n", 3, 8], dtype)],
        [value("y", ["n", 3, 8], dtype)],
        opset=20,
        ir_version=9,
    )
    x = X.astype(helper.tensor_dtype_to_np_dtype(dtype))
    if form == "none":
        wanted = np.vectorize(lambda v: v * (1 + math.erf(v / 2**0.5)) / 2)(x.astype(float))
    else:
        wanted = np.vectorize(
            lambda v: v * (1 + math.tanh((2 / math.pi) ** 0.5 * (v + 0.044715 * v**3))) / 2
        )(x.astype(float))
    after = lowered(made, OLD)
    assert "Gelu" not in kinds(after)
    assert after.opset_import[0].version == 17
    assert after.ir_version == 8
    bar = 2e-6 if dtype == FLOAT else 4e-3
    np.testing.assert_allclose(run_reference(after, {"x": x})[0], wanted, rtol=bar, atol=bar)


def test_a_part_of_a_shape_is_gathered_where_start_and_end_are_ignored():
    made = valid_graph(
        [node("Shape", "x", "y", start=-2, end=3)],
        [value("x", ["n", 3, 8])],
        [value("y", [2], INT64)],
    )
    after = lowered(made, OLD)
    assert kinds(after) == ["Shape", "Gather"]
    assert not after.graph.node[0].attribute
    np.testing.assert_array_equal(run_onnxruntime(after, {"x": X})[0], [3, 8])
    assert kinds(lowered(made, NEW)) == ["Shape"]
