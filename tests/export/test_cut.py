"""Graphs cut into segments: run in order in ONNX Runtime, they give the very bits of the whole."""

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from compress.errors import UnsupportedModelError
from compress.export.cut import cut_graph
from compress.runtime.manifest import TensorSpec
from compress.runtime.onnxruntime_session import SLOWER
from tests.export.cut_networks import NETWORKS, RESULTS, SIZE, exported, images
from tests.export.small_graphs import node, valid_graph, value

WIDTH = 4
TWO = ({"a": "logits"}, {"b": "logits"})


def run(proto, feed):
    """All outputs by name, as the dispatcher's sessions compute them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=SLOWER,
    )
    names = [output.name for output in session.get_outputs()]
    taken = {each.name: feed[each.name] for each in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def chained(segments, results, image):
    """What the segments give in order, by the names of the whole graph."""
    living, found = {"image": image}, {}
    for segment, names in zip(segments, results, strict=True):
        given_on = run(segment.proto, living)
        found.update({whole: given_on.pop(own) for whole, own in names.items()})
        assert not living.keys() & given_on.keys()
        living.update(given_on)
    return found


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_sound(segments, whole):
    """Every segment is valid, says what it is, and holds nothing that nobody reads."""
    for segment in segments:
        onnx.checker.check_model(segment.proto, full_check=True)
        graph = segment.proto.graph
        for values, specs in (
            (graph.input, segment.takes),
            (graph.output, (*segment.gives, *segment.results)),
        ):
            assert [spec_of(each) for each in values] == list(specs)
        made = {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer}
        read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
        assert {n.output[0] for n in graph.node} <= read
        assert {t.name for t in graph.initializer} <= read
        assert read - {""} <= made | {i.name for i in graph.input}
        assert {i.name for i in graph.input} <= read
    batches = {dim_of_images(each) for s in segments for each in s.proto.graph.input}
    assert batches == {dim_of_images(whole.graph.input[0])}


def dim_of_images(info):
    return info.type.tensor_type.shape.dim[0].SerializeToString()


def spec_of(info):
    kind = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(info.name, dtype, tuple(d.dim_value for d in kind.shape.dim[1:]))


@pytest.mark.parametrize("free_batch", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_segments_in_order_are_the_whole_bit_by_bit(name, free_batch):
    whole = exported(name, free_batch=free_batch)
    before = whole.SerializeToString()
    segments = cut_graph(whole, RESULTS, images(2))
    assert whole.SerializeToString() == before
    assert_sound(segments, whole)
    image = images(5 if free_batch else 1)
    assert_same_bits(chained(segments, RESULTS, image), run(whole, {"image": image}))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_node_is_in_exactly_one_segment(name):
    whole = exported(name)
    segments = cut_graph(whole, RESULTS, images(2))
    kept = Counter(n.op_type for s in segments for n in s.proto.graph.node)
    assert kept == Counter(n.op_type for n in whole.graph.node)
    names = [n.name for s in segments for n in s.proto.graph.node]
    assert sorted(names) == sorted(n.name for n in whole.graph.node)


def test_one_tensor_crosses_between_residual_blocks():
    segments = cut_graph(exported("residual"), RESULTS, images(2))
    maps = [TensorSpec(f"hidden_{i}", "float32", (16, SIZE, SIZE)) for i in range(2)]
    assert [s.gives for s in segments] == [(maps[0],), (maps[1],), ()]
    assert [s.takes for s in segments] == [
        (TensorSpec("image", "float32", (3, SIZE, SIZE)),),
        (maps[0],),
        (maps[1],),
    ]


def test_tensors_are_kept_for_the_segments_that_read_them():
    """The decoder reads the first map and the image, the segment between reads neither."""
    segments = cut_graph(exported("skipping"), RESULTS, images(2))
    assert [[t.name for t in s.gives] for s in segments] == [
        ["hidden_0", "hidden_1"],
        ["hidden_2"],
        [],
    ]
    assert [[t.name for t in s.takes] for s in segments] == [
        ["image"],
        ["hidden_1"],
        ["image", "hidden_0", "hidden_2"],
    ]


def test_all_that_a_dense_block_has_made_crosses():
    segments = cut_graph(exported("dense"), RESULTS, images(2))
    assert [t.shape[0] for t in segments[1].takes] == [8, 4, 4]
    assert [t.shape[0] for t in segments[2].takes] == [8, 4, 4, 4]


def small(*nodes, outputs="a b", free=True, **constants):
    """A graph of image (B, 4) whose outputs have that form too."""
    shape = ["batch" if free else 1, WIDTH]
    given_out = [value(name, shape) for name in outputs.split()]
    return valid_graph(list(nodes), [value("image", shape)], given_out, **constants)


def image_of(count):
    return np.random.default_rng(1).normal(size=(count, WIDTH)).astype(np.float32)


def cut_small(whole, results=TWO):
    """Cut it; return the segments after they were compared with the whole."""
    segments = cut_graph(whole, results, image_of(2))
    assert_sound(segments, whole)
    free = whole.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    image = image_of(3 if free else 1)
    assert_same_bits(chained(segments, results, image), run(whole, {"image": image}))
    return segments


def kinds_of(segments):
    return [[n.op_type for n in s.proto.graph.node] for s in segments]


def test_a_weight_goes_to_every_segment_that_reads_it_and_is_not_carried():
    whole = small(
        node("Add", "image w", "x"),
        node("Relu", "x", "a"),
        node("Mul", "x w", "b"),
        w=np.arange(4, dtype=np.float32),
    )
    first, last = cut_small(whole)
    for segment in (first, last):
        (weight,) = segment.proto.graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(weight), np.arange(4))
    assert [t.name for t in first.gives] == ["hidden_0"]


def test_what_is_computed_from_constants_alone_is_computed_where_it_is_read():
    whole = small(
        node("Neg", "w", "minus"),
        node("Add", "image minus", "x"),
        node("Relu", "x", "a"),
        node("Mul", "x minus", "b"),
        w=np.arange(4, dtype=np.float32),
    )
    first, last = cut_small(whole)
    assert kinds_of([first, last]) == [["Neg", "Add", "Relu"], ["Neg", "Mul"]]
    assert len(first.gives) == 1


def test_another_view_of_what_crosses_is_computed_again():
    """Both x and its Cast are read behind the cut; only x crosses."""
    whole = small(
        node("Abs", "image", "x"),
        node("Cast", "x", "whole_numbers", to=TensorProto.INT64),
        node("Cast", "whole_numbers", "y", to=TensorProto.FLOAT),
        node("Add", "x y", "a"),
        node("Mul", "y x", "b"),
    )
    first, last = cut_small(whole)
    assert [t.name for t in first.gives] == ["hidden_0"]
    assert kinds_of([last]) == [["Cast", "Cast", "Mul"]]


def test_a_view_of_what_does_not_cross_is_carried():
    whole = small(
        node("Abs", "image", "x"),
        node("Cast", "x", "y", to=TensorProto.INT64),
        node("Cast", "y", "a", to=TensorProto.FLOAT),
        node("Equal", "y two", "is_two"),
        node("Cast", "is_two", "b", to=TensorProto.FLOAT),
        two=np.array([2]),
    )
    first, last = cut_small(whole)
    assert first.gives == last.takes == (TensorSpec("hidden_0", "int64", (WIDTH,)),)


def test_truth_values_cross():
    whole = small(
        node("Greater", "image zero", "positive"),
        node("Cast", "positive", "a", to=TensorProto.FLOAT),
        node("Where", "positive zero two", "b_"),
        node("Add", "b_ image", "b"),
        zero=np.float32(0),
        two=np.float32(2),
    )
    first, _ = cut_small(whole)
    assert [t.dtype for t in first.gives] == ["bool"]


@pytest.mark.parametrize("free", [True, False])
def test_the_number_of_images_is_asked_of_what_crosses(free):
    """Else the image would be kept for its shape alone, and the shape itself has no rows."""
    whole = small(
        node("Shape", "image", "count", start=0, end=1),
        node("Concat", "count width", "wanted", axis=0),
        node("Exp", "image", "x"),
        node("Reshape", "x wanted", "flat"),
        node("Relu", "flat", "a"),
        node("Expand", "token wanted", "tokens"),
        node("Mul", "flat tokens", "b"),
        free=free,
        width=np.array([WIDTH]),
        token=np.arange(WIDTH, dtype=np.float32)[None],
    )
    first, last = cut_small(whole)
    assert [t.name for t in last.takes] == ["hidden_0"]
    assert kinds_of([last]) == [["Shape", "Concat", "Expand", "Mul"]]
    assert len(first.gives) == 1


def test_what_crosses_is_numbered_by_the_segments_that_make_it():
    """Whatever the order of the graph, which may hold what a later segment makes first."""
    whole = small(
        node("Exp", "image", "late"),
        node("Abs", "image", "early"),
        node("Relu", "early", "a"),
        node("Neg", "late", "b"),
        node("Add", "early late", "c"),
        outputs="a b c",
    )
    segments = cut_small(whole, [{"a": "logits"}, {"b": "logits"}, {"c": "logits"}])
    assert kinds_of(segments) == [["Abs", "Relu"], ["Exp", "Neg"], ["Add"]]
    assert [[t.name for t in s.gives] for s in segments] == [["hidden_0"], ["hidden_1"], []]


def test_a_value_that_is_a_result_and_is_read_later_is_given_twice():
    whole = small(node("Relu", "image", "a"), node("Exp", "a", "b"))
    first, last = cut_small(whole)
    assert [o.name for o in first.proto.graph.output] == ["hidden_0", "logits"]
    assert kinds_of([last]) == [["Exp"]]


def test_names_that_the_graph_has_already_get_out_of_the_way():
    whole = small(
        node("Abs", "image", "hidden_1"),
        node("Neg", "hidden_1", "logits"),
        node("Relu", "logits", "a"),
        node("Exp", "hidden_1", "hidden_0"),
        node("Add", "hidden_0 logits_w", "b"),
        logits_w=np.float32(3),
    )
    first, _ = cut_small(whole)
    assert [t.name for t in first.gives] == ["hidden_0"]


def test_nodes_that_no_result_needs_are_left_out():
    whole = small(
        node("Relu", "image", "a"), node("Exp", "image", "b"), node("Neg", "image", "unread")
    )
    assert kinds_of(cut_small(whole)) == [["Relu"], ["Exp"]]


def test_equal_graphs_give_equal_bytes():
    twice = [
        [s.proto.SerializeToString(deterministic=True) for s in cut_graph(*arguments)]
        for arguments in [(exported("dense"), RESULTS, images(2))] * 2
    ]
    assert twice[0] == twice[1]


def test_an_exit_that_needs_the_whole_network_leaves_nothing_behind_it():
    whole = small(node("Exp", "image", "b"), node("Relu", "b", "a"))
    with pytest.raises(UnsupportedModelError, match=r"segment 1 would compute nothing.*exit 0"):
        cut_graph(whole, TWO, image_of(2))


def test_what_has_no_row_an_image_cannot_cross():
    whole = small(
        node("Transpose", "image", "turned", perm=[1, 0]),
        node("Exp", "turned", "x"),
        node("Transpose", "x", "a", perm=[1, 0]),
        node("Neg", "x", "y"),
        node("Transpose", "y", "b", perm=[1, 0]),
    )
    with pytest.raises(UnsupportedModelError, match=r"x \(Exp\) would go on.*not that of the im"):
        cut_graph(whole, TWO, image_of(2))


def test_a_turned_view_is_turned_again():
    whole = small(
        node("Exp", "image", "x"),
        node("Transpose", "x", "turned", perm=[1, 0]),
        node("Transpose", "turned", "a", perm=[1, 0]),
        node("Neg", "turned", "y"),
        node("Transpose", "y", "b", perm=[1, 0]),
    )
    first, last = cut_small(whole)
    assert [(t.name, t.shape) for t in first.gives] == [("hidden_0", (WIDTH,))]
    assert kinds_of([last]) == [["Transpose", "Neg", "Transpose"]]


UNARY = ("Relu", "Neg", "Abs", "Sigmoid", "Identity")
BINARY = ("Add", "Mul", "Max")
LINKS = ("unary", "binary", "product", "turned twice", "reshaped", "cast")


@st.composite
def random_graphs(draw):
    """A graph of random links, and which of its values are results of which of three segments."""
    nodes, known = [], ["image"]
    for i in range(draw(st.integers(3, 14))):
        x, y = (draw(st.sampled_from(known)) for _ in range(2))
        name, kind = f"v{i}", draw(st.sampled_from(LINKS))
        if kind == "unary":
            nodes.append(node(draw(st.sampled_from(UNARY)), x, name))
        elif kind == "binary":
            nodes.append(node(draw(st.sampled_from(BINARY)), f"{x} {y}", name))
        elif kind == "product":
            nodes.append(node("MatMul", f"{x} {draw(st.sampled_from(['w', 'u']))}", name))
        elif kind == "turned twice":
            nodes.append(node("Transpose", x, f"{name}_t", perm=[1, 0]))
            nodes.append(node("Transpose", f"{name}_t", name, perm=[1, 0]))
        elif kind == "reshaped":
            nodes.append(node("Shape", y, f"{name}_n", start=0, end=1))
            nodes.append(node("Concat", f"{name}_n width", f"{name}_s", axis=0))
            nodes.append(node("Reshape", f"{x} {name}_s", name))
        else:
            nodes.append(node("Cast", x, f"{name}_h", to=TensorProto.FLOAT16))
            nodes.append(node("Cast", f"{name}_h", name, to=TensorProto.FLOAT))
        known.append(name)
    made = known[1:]
    chosen = sorted(draw(st.sets(st.sampled_from(made), min_size=2, max_size=3)), key=made.index)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) for name in "wu"}
    free = draw(st.booleans())
    whole = small(*nodes, outputs=" ".join(chosen), free=free, width=np.array([WIDTH]), **weights)
    return whole, [{name: "logits"} for name in chosen]


@settings(max_examples=60, deadline=None)
@given(random_graphs())
def test_any_graph_is_cut_without_a_bit_of_difference(drawn):
    whole, results = drawn
    cut_small(whole, results)
