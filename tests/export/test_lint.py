import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.errors import UnsupportedModelError
from compress.export.lint import check_lint, lint
from compress.export.lowering import lowered
from compress.export.targets import TARGETS, target
from tests.export.real_parser import VERSIONS, ask
from tests.export.small_graphs import FLOAT, HALF, INT64, graph, node, value

OLD = ("jetpack5.1", "jetpack6.0")
NEW = ("jetpack6.2", "jetpack7", "tensorrt10", "tensorrt11", "tensorrt-rtx")
TENSORRT = (*OLD, *NEW)

X = [value("x", ["n", 3, 8])]
Y = [value("y", ["n", 3, 8])]
IMAGE, MAP = [value("x", ["n", 3, 8, 8])], [value("y", ["n", 3, 4, 4])]
AXES = {"a": np.array([-1], np.int64)}
SCALE = np.float32(0.1)


def of(kind, inputs, *, x=X, y=Y, outputs="y", opset=17, constants=None, **attributes):
    """A graph of one node."""
    return graph([node(kind, inputs, outputs, **attributes)], x, y, opset=opset, **constants or {})


def cases():
    """Rule that must speak, targets where it must, a graph, whether the real parser refuses too.

    On every other target with TensorRT the rule must be silent.
    """
    mean = value("y", ["n", 3, 1])
    for kind in ("ReduceMean", "ReduceMax", "ReduceL2"):
        yield "ignored-input", OLD, of(kind, "x a", y=[mean], opset=18, constants=AXES), False
    computed = [*X, value("a", [1], INT64)]
    yield "constant-input", NEW, of("ReduceMean", "x a", x=computed, y=[mean], opset=18), True
    yield "constant-input", TENSORRT, of("ReduceSum", "x a", x=computed, y=[mean]), True
    yield "constant-input", TENSORRT, of("Unsqueeze", "x a", x=computed, y=[mean]), True
    two = [value("y", ["n", 3, 2]), value("i", ["n", 3, 2], INT64)]
    top = of("TopK", "x k", x=[*X, value("k", [1], INT64)], y=two, outputs="y i")
    yield "constant-input", OLD, top, False
    yield "opset", OLD, of("Relu", "x", opset=18), False
    yield "opset", TENSORRT, of("Relu", "x", opset=22), False
    yield "operator", TENSORRT, of("Mod", "x x", fmod=1), False
    yield "operator", TENSORRT, of("QLinearMatMul", "x x x x x x x x"), False
    yield "operator", ("jetpack5.1",), layer_norm(), False
    yield "operator", OLD, of("Gelu", "x", opset=20), False
    yield "ignored-attribute", OLD, shape_part(), False
    yield "attribute", TENSORRT, pooled(dilations=[2, 2]), True
    yield "outputs", TENSORRT, pooled(outputs="y indices"), True
    yield "operand-type", TENSORRT, of("Relu", "x", x=integers(), y=integers("y")), True
    yield "zero-point", TENSORRT, quantised(3), True
    uint8 = quantised(0, np.uint8)
    yield "operand-type", TENSORRT, uint8, False
    yield "computed-input", OLD, weight(np.int8), False
    yield "operand-type", TENSORRT, weight(np.int32), True
    yield "subgraph", TENSORRT, conditional(), False
    # taken without a word by the real parser, and computed in float32
    doubles = [value("x", ["n", 3], TensorProto.DOUBLE)]
    yield "type", TENSORRT, of("Relu", "x", x=doubles, y=[value("y", ["n", 3], 11)]), False
    yield "integer-range", OLD, far_integer("Add"), False
    yield "io-type", OLD, far_integer("Identity"), False
    yield "dynamic-shape", TENSORRT, of("Relu", "x", x=[value("x", ["n", 3, "w"])]), False
    yield "dynamic-shape", TENSORRT, of("Relu", "x", y=[value("y", None)]), False


def layer_norm():
    return of("LayerNormalization", "x g", constants={"g": np.ones(8, np.float32)})


def shape_part():
    return of("Shape", "x", y=[value("y", [1], TensorProto.INT32)], start=0, end=1)


def pooled(outputs="y", **attributes):
    y = [*MAP, value("indices", ["n", 3, 4, 4], INT64)] if " " in outputs else MAP
    return of(
        "MaxPool",
        "x",
        x=IMAGE,
        y=y,
        outputs=outputs,
        kernel_shape=[2, 2],
        strides=[2, 2],
        **attributes,
    )


def integers(name="x"):
    return [value(name, ["n", 3], TensorProto.INT32)]


def quantised(zero, dtype=np.int8):
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    return graph(nodes, X, Y, opset=17, s=SCALE, z=np.array(zero, dtype))


def weight(dtype):
    nodes = [node("DequantizeLinear", "w s", "d"), node("Add", "x d", "y")]
    return graph(nodes, X, Y, opset=17, s=SCALE, w=np.ones(8, dtype))


def conditional():
    def branch(name, kind):
        return helper.make_graph([node(kind, "x", name)], name, [], [value(name, ["n", 3, 8])])

    nodes = [
        node("ReduceMax", "x", "m", keepdims=0),
        node("Cast", "m", "c", to=TensorProto.BOOL),
        node("If", "c", "y", then_branch=branch("p", "Relu"), else_branch=branch("q", "Neg")),
    ]
    return graph(nodes, X, Y, opset=17)


def far_integer(kind):
    x = [value("x", ["n", 3], INT64)]
    constants = {} if kind == "Identity" else {"c": np.array([2**40], np.int64)}
    return of(
        kind, "x " + " ".join(constants), x=x, y=[value("y", ["n", 3], INT64)], constants=constants
    )


CASES = [pytest.param(*case[:3], id=f"{i}-{case[0]}") for i, case in enumerate(cases())]


@pytest.mark.parametrize(("rule", "targets", "made"), CASES)
def test_each_rule_speaks_on_its_targets_alone(rule, targets, made):
    for name in TENSORRT:
        found = {finding.rule for finding in lint(made, target(name))}
        assert (rule in found) is (name in targets), name
    if rule in ("ignored-input", "operator", "subgraph", "outputs", "attribute", "zero-point"):
        assert lint(made, target("onnxruntime")) == []


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_parser_refuses_what_the_lint_refuses(version, tmp_path):
    refused = set()
    for i, (_, targets, made, by_parser) in enumerate(cases()):
        if "tensorrt-rtx" in targets:
            onnx.save(made, tmp_path / f"{i}.onnx")
            refused |= {str(tmp_path / f"{i}.onnx")} if by_parser else set()
    errors, _ = ask(version, files=sorted(tmp_path.iterdir()))
    assert len(refused) > 6
    assert refused <= {path for path, found in errors.items() if found}


def test_the_message_names_node_operator_target_and_remedy():
    made = of("ReduceMean", "x a", y=[value("y", ["n", 3, 1])], opset=18, constants=AXES)
    made.graph.node[0].name = "pool"
    with pytest.raises(UnsupportedModelError) as caught:
        check_lint(made, target("jetpack6.0"))
    for part in ("jetpack6.0 (TensorRT 8.6.2)", "opset 18", "(1 more of the kind)"):
        assert part in str(caught.value)
    (trap,) = [f for f in lint(made, target("jetpack6.0")) if f.rule == "ignored-input"]
    assert (trap.level, trap.node, trap.operator) == ("error", "pool", "ReduceMean")
    for part in ("node pool (ReduceMean)", "all axes", "TensorRT 8.6.2", "lower the graph"):
        assert part in trap.message


def test_a_fourier_transform_is_sent_to_the_matrix_form():
    made = of("DFT", "x", y=[value("y", ["n", 3, 5, 2])], onesided=1)
    with pytest.raises(UnsupportedModelError, match=r"DFT is not among.*python -m compress.lower"):
        check_lint(made, target("tensorrt11"))


def test_complex_tensors_are_refused_everywhere():
    made = of(
        "Identity", "x", x=[value("x", ["n"], TensorProto.COMPLEX64)], y=[value("y", ["n"], 14)]
    )
    for name in TARGETS:
        (finding, *_) = [f for f in lint(made, target(name)) if f.rule == "type"]
        assert "complex64" in finding.message
        assert "real products" in finding.message


def test_a_foreign_operator_is_refused_even_by_name():
    made = of("Gelu", "x")
    made.graph.node[0].domain = "com.example"
    with pytest.raises(UnsupportedModelError, match="No opset import"):
        lint(made, target("tensorrt10"))  # damaged: nothing says which version of it
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    for name in TARGETS:
        assert "com.example.Gelu" in lint(made, target(name))[0].message


def test_values_in_another_file_are_refused():
    made = of("Add", "x c", constants={"c": np.ones(8, np.float32)})
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], "weights.bin")
    made.graph.initializer[0].ClearField("raw_data")
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    for name in TARGETS:
        assert [f.rule for f in lint(made, target(name))] == ["external-data"]


@pytest.mark.parametrize(("side", "fits"), [(23170, True), (23171, False)])
def test_a_tensor_of_two_gibibytes_is_too_large(side, fits):
    """23170² floats are just below 2 GiB, 23171² just above; a free batch counts as one image."""
    shape = ["n", side, side]
    made = of("Relu", "x", x=[value("x", shape)], y=[value("y", shape)])
    assert (4 * side**2 < 2**31) is fits
    assert [f.rule for f in lint(made, target("tensorrt10"))] == ([] if fits else ["size", "size"])


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_plain_layers_are_clean_everywhere(dtype):
    made = of("Sigmoid", "x", x=[value("x", ["n", 3], dtype)], y=[value("y", ["n", 3], dtype)])
    for name in TARGETS:
        assert check_lint(made, target(name)) == []


def test_bounds_of_a_slice_may_be_as_far_as_torch_writes_them():
    made = of(
        "Slice",
        "x s e a",
        constants={"s": [1], "e": [2**63 - 1], "a": [1]},
        y=[value("y", ["n", 2, 8])],
    )
    assert lint(made, target("jetpack5.1")) == []


def filters(*, split, blocks=2):
    """Blocks of a global filter, in split form or with a Slice and a Concat inside each."""
    rng = np.random.default_rng(0)
    shape = (4, 4) if split else (8, 4)
    constants = {"f": rng.normal(size=shape).astype(np.float32)}
    constants["g"] = constants["f"].T.copy()
    constants |= {
        "lo": np.array([0]),
        "mid": np.array([4]),
        "hi": np.array([8]),
        "rows": np.array([1]),
    }
    nodes = [node("Transpose", "x", "t0", perm=[0, 2, 1])]
    for i in range(blocks):
        nodes.append(node("MatMul", f"f t{i}", f"p{i}"))
        if not split:
            nodes += [
                node("Slice", f"p{i} lo mid rows", f"a{i}"),
                node("Slice", f"p{i} mid hi rows", f"b{i}"),
                node("Concat", f"b{i} a{i}", f"q{i}", axis=1),
            ]
        nodes.append(node("MatMul", f"g {'p' if split else 'q'}{i}", f"t{i + 1}"))
    nodes.append(node("Concat", f"t{blocks} t{blocks}", "y", axis=1))
    x, y = [value("x", ["n", 5, 4])], [value("y", ["n", 8, 5])]
    return graph(nodes, x, y, opset=17, **constants)


def test_moves_inside_a_filter_are_told_with_their_number():
    (found,) = check_lint(filters(split=False), target("jetpack5.1"))
    assert (found.level, found.rule) == ("info", "moves-in-filter")
    assert found.message.startswith("4 Slice, 2 Concat between the products")


def test_moves_before_and_behind_filters_are_not():
    assert lint(filters(split=True), target("jetpack5.1")) == []


def test_lowering_heals_what_it_can():
    for made in (of("Gelu", "x", opset=20), layer_norm(), shape_part()):
        for name in OLD:
            rules = {f.rule for f in lint(lowered_shape(made, name), target(name))}
            assert not rules & {"operator", "ignored-attribute", "opset"}


def lowered_shape(made, name):
    """The lowered graph; a Shape gives int64 whatever its graph says."""
    if made.graph.node[0].op_type == "Shape":
        made.graph.output[0].type.tensor_type.elem_type = INT64
    return lowered(made, target(name))
