"""Einsum as matrix products, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UnsupportedModelError
from compress.export.lowering import lowered
from compress.export.targets import target
from tests.export.small_graphs import graph, kinds, node, run_reference, value

OLDEST = target("jetpack5.1")
SIZES = dict(zip("abcdefgh", (2, 3, 4, 5, 2, 3, 2, 3), strict=True))


def lowered_einsum(equation, left, right, *, constant):
    """Lower an Einsum of two arrays, the second one a constant or an input; run it."""
    inputs = [value("a", ["n", *left.shape[1:]])]
    constants = {"b": right} if constant else {}
    if not constant:
        inputs.append(value("b", list(right.shape)))
    rank = np.einsum(equation, left, right).ndim
    made = graph(
        [node("Einsum", "a b", "y", equation=equation)],
        inputs,
        [value("y", [None] * rank)],
        **constants,
    )
    after = lowered(made, OLDEST)
    feed = {"a": left} if constant else {"a": left, "b": right}
    return kinds(after), run_reference(after, feed)[0]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_product_of_two_tensors_is_what_numpy_computes(data):
    letters = data.draw(st.permutations("bcdefgh"))
    counts = [data.draw(st.integers(0, 2), name) for name in ("batch", "summed", "left", "right")]
    stops = np.cumsum(counts)
    batch, summed, left, right = (
        letters[stop - n : stop] for n, stop in zip(counts, stops, strict=True)
    )
    first = "a" + "".join(data.draw(st.permutations([*batch, *summed, *left])))  # a: free batch
    second = "".join(data.draw(st.permutations([*batch, *summed, *right])))
    result = "".join(data.draw(st.permutations(["a", *batch, *left, *right])))
    arrays = [
        np.random.default_rng(i).normal(size=[SIZES[c] for c in term]).astype(np.float32)
        for i, term in enumerate((first, second))
    ]
    equation = f"{first},{second}->{result}"
    operators, found = lowered_einsum(equation, *arrays, constant=data.draw(st.booleans()))
    assert set(operators) <= {"Transpose", "Reshape", "MatMul"}
    np.testing.assert_allclose(found, np.einsum(equation, *arrays), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("equation", ["...bi,bio->...bo", "...i,io", "ab...,...->ab..."])
def test_ellipses_and_results_that_are_not_named(equation):
    shapes = {
        "...bi,bio->...bo": ((2, 3, 4, 5), (4, 5, 6)),
        "...i,io": ((2, 3, 5), (5, 4)),
        "ab...,...->ab...": ((2, 3, 4, 5), (4, 5)),
    }
    arrays = [np.random.default_rng(i).normal(size=s) for i, s in enumerate(shapes[equation])]
    arrays = [array.astype(np.float32) for array in arrays]
    _, found = lowered_einsum(equation, *arrays, constant=True)
    np.testing.assert_allclose(found, np.einsum(equation, *arrays), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("equation", "words"),
    [("aab,bc->ac", "diagonal"), ("abc,cd->ad", "one tensor alone")],
)
def test_what_is_no_product_is_refused(equation, words):
    ones = {"aab,bc->ac": ((2, 2, 3), (3, 4)), "abc,cd->ad": ((2, 3, 4), (4, 5))}[equation]
    made = graph(
        [node("Einsum", "a b", "y", equation=equation)],
        [value("a", list(ones[0])), value("b", list(ones[1]))],
        [value("y", [None, None])],
    )
    with pytest.raises(UnsupportedModelError, match=words):
        lowered(made, OLDEST)
