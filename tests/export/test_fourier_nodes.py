"""Single transforms as real products, against numpy, and what is refused."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compress.errors import UnsupportedModelError
from compress.export.fourier import count_transforms, rewrite_transforms_
from compress.export.graph_tidy import tidy_
from tests.export.small_graphs import (
    INT64,
    graph,
    kinds,
    node,
    run_onnxruntime,
    run_reference,
    value,
)

RNG = np.random.default_rng(0)
REAL = {"MatMul", "Add", "Mul", "Reshape", "Transpose", "Slice", "Pad", "Gather", "Concat"}
REAL |= {"Unsqueeze", "Squeeze", "Identity", "Conv", "Neg", "Sub"}


def rewritten(made):
    """The graph without transforms, checked; the given one is changed."""
    rewrite_transforms_(made)
    tidy_(made)
    onnx.checker.check_model(made, full_check=True)
    assert set(kinds(made)) <= REAL
    return made


def dft(shape, axis, *, length=None, inverse=0, onesided=0, opset=18):
    """A graph of one DFT node, the first dimension free."""
    inputs, constants, attributes = ["x", ""], {}, {"inverse": inverse, "onesided": onesided}
    if length is not None:
        inputs[1], constants["length"] = "length", np.int64(length)
    if opset >= 20:
        inputs.append("axis")
        constants["axis"] = np.int64(axis)
    else:
        attributes["axis"] = axis
    while not inputs[-1]:
        inputs.pop()
    made = helper.make_node("DFT", inputs, ["y"], **attributes)
    values = [value("x", ["n", *shape[1:]])], [value("y", [None] * len(shape))]
    return graph([made], *values, opset=opset, **constants)


def expected(x, axis, *, length=None, inverse=0, onesided=0):
    """What numpy computes, in ONNX's layout of real and imaginary part."""
    z = x[..., 0].astype(complex)
    if x.shape[-1] == 2:
        z += 1j * x[..., 1]
    if inverse and onesided:
        return np.fft.irfft(z, n=length, axis=axis)[..., None]
    kind = np.fft.ifft if inverse else np.fft.fft
    y = np.fft.rfft(z.real, n=length, axis=axis) if onesided else kind(z, n=length, axis=axis)
    return np.stack([y.real, y.imag], axis=-1)


def assert_close(found, wanted, bar=1e-5):
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) <= bar * np.linalg.norm(wanted)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_transform_is_what_numpy_computes(data):
    rank = data.draw(st.integers(1, 3), "signal axes")
    shape = [2, *data.draw(st.lists(st.integers(1, 12), min_size=rank, max_size=rank), "sizes")]
    axis = data.draw(st.integers(1, rank), "axis")
    shape[axis] = data.draw(st.one_of(st.integers(2, 40), st.sampled_from([97, 144, 211, 320])))
    inverse, onesided = data.draw(st.booleans(), "inverse"), data.draw(st.booleans(), "onesided")
    parts = 2 if inverse == onesided == 1 else 1 if onesided else data.draw(st.integers(1, 2))
    length = data.draw(st.none() | st.integers(2, shape[axis] + 20), "length")
    opset = data.draw(st.sampled_from([17, 18, 20]))
    spelled = axis - (rank + 2) if data.draw(st.booleans(), "axis from the end") else axis
    options = {"length": length, "inverse": int(inverse), "onesided": int(onesided)}
    x = RNG.normal(size=[*shape, parts]).astype(np.float32)
    made = rewritten(dft(x.shape, spelled, opset=opset, **options))
    assert_close(run_reference(made, {"x": x})[0], expected(x, axis, **options))


@pytest.mark.parametrize(("dtype", "bar"), [(np.float16, 3e-3), (np.float64, 1e-12)])
def test_transforms_stay_in_the_type_of_the_graph(dtype, bar):
    made = dft((2, 48, 2), 1)
    for item in (made.graph.input[0], made.graph.output[0]):
        item.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = RNG.normal(size=(2, 48, 2)).astype(dtype)
    (found,) = run_reference(rewritten(made), {"x": x})
    assert found.dtype == dtype
    assert_close(found.astype(np.float64), expected(x, 1), bar)


LONG = [(2048, 0, 1), (2048, 1, 1), (1800, 0, 0), (1021, 0, 1), (1021, 1, 1), (1021, 1, 0)]
REAL_LENGTHS = [144, 225, 480, 1000]  # whose whole spectrum is asked for


@pytest.mark.parametrize(("length", "inverse", "onesided"), LONG)
def test_long_transforms_take_few_constants(length, inverse, onesided):
    options = {"inverse": inverse, "onesided": onesided, "length": length}
    half = length // 2 + 1 if inverse and onesided else length
    x = RNG.normal(size=(2, half, 1 if onesided and not inverse else 2)).astype(np.float32)
    made = rewritten(dft(x.shape, 1, **options))
    assert_close(run_onnxruntime(made, {"x": x})[0], expected(x, 1, **options))
    stored = sum(np.prod(tensor.dims) for tensor in made.graph.initializer)
    if length != 1021:  # a prime may be one matrix where that is fastest
        assert stored < 60 * length  # one matrix would hold a thousand for each point


@pytest.mark.parametrize("length", REAL_LENGTHS)
@pytest.mark.parametrize("inverse", [0, 1])
def test_the_whole_spectrum_of_a_real_signal(length, inverse):
    x = RNG.normal(size=(16, length, 1)).astype(np.float32)
    made = rewritten(dft(x.shape, 1, inverse=inverse))
    assert_close(run_onnxruntime(made, {"x": x})[0], expected(x, 1, inverse=inverse), 1e-6)


@pytest.mark.parametrize("length", [480, 509])
@pytest.mark.parametrize(
    ("declared", "axis"), [(["n", "m", None], 2), (["n", None, "m"], 1), (["n", None, 5], 1)]
)
def test_long_transforms_stand_between_free_sizes(declared, axis, length):
    shape = [2, 3, 3, 2]
    shape[axis] = length
    sizes = [length if i == axis else n for i, n in enumerate(declared)]
    shape[2] = 5 if declared[2] == 5 else shape[2]
    made = dft(shape, axis)
    del made.graph.input[:]
    made.graph.input.append(value("x", [*sizes, 2]))
    x = RNG.normal(size=shape).astype(np.float32)
    assert_close(run_onnxruntime(rewritten(made), {"x": x})[0], expected(x, axis), 1e-6)


@pytest.mark.parametrize("kept", [1, 100, 400])
@pytest.mark.parametrize("length", [1000, 1021])
def test_a_spectrum_with_few_bins_becomes_a_long_signal(length, kept):
    x = RNG.normal(size=(16, kept, 2)).astype(np.float32)
    options = {"length": length, "inverse": 1, "onesided": 1}
    made = rewritten(dft(x.shape, 1, **options))
    assert_close(run_onnxruntime(made, {"x": x})[0], expected(x, 1, **options), 1e-6)


def test_low_frequencies_cost_what_they_are():
    """16 of 1025 bins are read: two thin matrices, and no transform of the whole."""
    made = dft((2, 2048, 1), 1, onesided=1)
    made.graph.node[0].output[0] = "whole"
    made.graph.node.append(node("Slice", "whole zero stop axis", "y"))
    constants = {"zero": [0], "stop": [16], "axis": [1]}
    for name, n in constants.items():
        made.graph.initializer.append(helper.make_tensor(name, INT64, [1], n))
    x = RNG.normal(size=(2, 2048, 1)).astype(np.float32)
    made = rewritten(made)
    assert sorted(kinds(made)) == [
        "Concat",
        "MatMul",
        "MatMul",
        "Squeeze",
        "Unsqueeze",
        "Unsqueeze",
    ]
    assert_close(run_onnxruntime(made, {"x": x})[0], expected(x, 1, onesided=1)[:, :16])


def test_a_complex_product_between_transforms_needs_no_moves():
    """The global filter as exporters write it: parts apart, four products, put together again."""
    weight = RNG.normal(size=(2, 5, 3, 4)).astype(np.float32)
    nodes = [
        node("Unsqueeze", "x last", "x1"),
        node("DFT", "x1 width", "a", axis=2, onesided=1),
        node("DFT", "a", "z", axis=1),
        node("Gather", "z zero", "re", axis=4),
        node("Gather", "z one", "im", axis=4),
        node("Mul", "re wr", "rr"),
        node("Mul", "im wi", "ii"),
        node("Mul", "re wi", "ri"),
        node("Mul", "im wr", "ir"),
        node("Sub", "rr ii", "pr"),
        node("Add", "ri ir", "pi"),
        node("Unsqueeze", "pr last", "pr1"),
        node("Unsqueeze", "pi last", "pi1"),
        node("Concat", "pr1 pi1", "p", axis=4),
        node("DFT", "p", "b", axis=1, inverse=1),
        node("DFT", "b width", "c", axis=2, inverse=1, onesided=1),
        node("Squeeze", "c last", "y"),
    ]
    constants = {"last": [-1], "width": 5, "zero": 0, "one": 1}
    made = graph(
        nodes,
        [value("x", ["n", 5, 5, 4])],
        [value("y", ["n", 5, 5, 4])],
        wr=weight[0],
        wi=weight[1],
        **{name: np.array(n, np.int64) for name, n in constants.items()},
    )
    x = RNG.normal(size=(2, 5, 5, 4)).astype(np.float32)
    spectrum = np.fft.rfft2(x, axes=(1, 2)) * (weight[0] + 1j * weight[1])
    wanted = np.fft.irfft2(spectrum, s=(5, 5), axes=(1, 2))
    made = rewritten(made)
    assert not {"Concat", "Slice", "Gather", "Transpose", "Unsqueeze"} & set(kinds(made))
    assert_close(run_onnxruntime(made, {"x": x})[0], wanted)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("length", "hop", "samples"), [(16, 4, 100), (15, 7, 64), (512, 128, 4096)]
)
def test_short_time_transforms(length, hop, samples, parts):
    window = np.hanning(length).astype(np.float32)
    made = graph(
        [node("STFT", "x hop window", "y", onesided=2 - parts)],
        [value("x", ["n", samples, parts])],
        [value("y", [None] * 4)],
        hop=np.int64(hop),
        window=window,
    )
    x = RNG.normal(size=(2, samples, parts)).astype(np.float32)
    z = x[..., 0] if parts == 1 else x[..., 0] + 1j * x[..., 1]
    starts = range(0, samples - length + 1, hop)
    frames = np.stack([z[:, s : s + length] * window for s in starts], axis=1)
    y = np.fft.rfft(frames) if parts == 1 else np.fft.fft(frames)
    found = run_onnxruntime(rewritten(made), {"x": x})[0]
    assert_close(found, np.stack([y.real, y.imag], axis=-1))


def test_a_signal_of_any_length_is_framed_by_a_convolution():
    made = graph(
        [node("STFT", "x hop window", "y", onesided=1)],
        [value("x", ["n", "samples", 1])],
        [value("y", [None] * 4)],
        hop=np.int64(8),
        window=np.ones(16, np.float32),
    )
    x = RNG.normal(size=(1, 77, 1)).astype(np.float32)
    assert run_onnxruntime(rewritten(made), {"x": x})[0].shape == (1, 8, 9, 2)


def test_a_transform_back_and_forth_leaves_the_signal():
    made = dft((2, 24, 2), 1)
    made.graph.node[0].output[0] = "z"
    made.graph.node.append(node("DFT", "z", "y", axis=1, inverse=1))
    x = RNG.normal(size=(2, 24, 2)).astype(np.float32)
    assert_close(run_onnxruntime(rewritten(made), {"x": x})[0], x)


def test_the_pair_is_put_together_where_something_else_reads_it():
    made = dft((2, 8, 1), 1)
    made.graph.node[0].output[0] = "z"
    made.graph.node.append(node("Softmax", "z", "y", axis=-1))
    x = RNG.normal(size=(2, 8, 1)).astype(np.float32)
    z = np.exp(expected(x, 1))
    rewrite_transforms_(made)
    assert_close(run_onnxruntime(made, {"x": x})[0], z / z.sum(-1, keepdims=True))


def test_parts_that_the_graph_gives_cost_a_product_each():
    nodes = [
        node("Unsqueeze", "x last", "x1"),
        node("DFT", "x1", "z", axis=1, onesided=1),
        node("Split", "z", "re im", axis=2, num_outputs=2),
        node("Squeeze", "re last", "a"),
        node("Squeeze", "im last", "b"),
    ]
    made = graph(nodes, [value("x", ["n", 8])], [value(n, ["n", 5]) for n in "ab"], last=[-1])
    made = rewritten(made)
    assert kinds(made) == ["MatMul", "MatMul"]
    x = RNG.normal(size=(2, 8)).astype(np.float32)
    assert_close(
        np.stack(run_onnxruntime(made, {"x": x}), -1), expected(x[..., None], 1, onesided=1)
    )


def test_a_graph_without_transforms_stays_as_it_is():
    made = graph(
        [node("Unsqueeze", "x last", "y")], [value("x", [3])], [value("y", [3, 1])], last=[-1]
    )
    before = made.SerializeToString()
    assert rewrite_transforms_(made) == 0
    assert made.SerializeToString() == before


def test_a_length_that_the_input_decides_is_refused_by_name():
    made = graph(
        [helper.make_node("DFT", ["x"], ["y"], name="mixer/fft", axis=1)],
        [value("x", ["n", "length", 1])],
        [value("y", [None] * 3)],
    )
    note = made.graph.node[0].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.name_scopes", "['', 'layers.3.mixer', 'fft']"
    with pytest.raises(
        UnsupportedModelError,
        match=r"mixer/fft \(DFT, in module layers\.3\.mixer\).*axis.*not constant.*fixed",
    ):
        rewrite_transforms_(made)


@pytest.mark.parametrize(
    ("inputs", "opset", "expected_words"),
    [
        ("x given", 18, "length given is computed"),
        ("x  given", 20, "axis given is computed"),
    ],
)
def test_lengths_and_axes_that_are_inputs_are_refused(inputs, opset, expected_words):
    made = graph(
        [helper.make_node("DFT", inputs.split(" "), ["y"])],
        [value("x", ["n", 8, 1]), value("given", [], INT64)],
        [value("y", [None] * 3)],
        opset=opset,
    )
    with pytest.raises(UnsupportedModelError, match=expected_words):
        rewrite_transforms_(made)


def test_a_length_computed_from_a_fixed_shape_is_constant():
    made = graph(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape one", "length"),
            helper.make_node("DFT", ["x", "length"], ["y"], axis=1),
        ],
        [value("x", ["n", 8, 1])],
        [value("y", [None] * 3)],
        one=np.int64(1),
    )
    x = RNG.normal(size=(2, 8, 1)).astype(np.float32)
    assert_close(run_onnxruntime(rewritten(made), {"x": x})[0], expected(x, 1))


def test_a_transform_inside_a_branch_is_refused():
    branches = {
        name: helper.make_graph(
            [node("DFT", "x", name, axis=1)], name, [], [value(name, [None] * 3)]
        )
        for name in ("then_branch", "else_branch")
    }
    made = graph(
        [helper.make_node("If", ["yes"], ["y"], name="choice", **branches)],
        [value("x", [2, 8, 1])],
        [value("y", [None] * 3)],
        yes=np.bool_(True),
    )
    assert count_transforms(made.graph.node) == 2
    with pytest.raises(UnsupportedModelError, match=r"choice \(If\).*move the transform"):
        rewrite_transforms_(made)
