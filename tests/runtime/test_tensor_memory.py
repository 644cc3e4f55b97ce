"""Tensors that cross share memory only where they never live at once: any network of segments."""

from hypothesis import given
from hypothesis import strategies as st

from compress.runtime.manifest import Manifest, Segment, TensorSpec
from compress.runtime.tensor_memory import places_of

IMAGE = TensorSpec("image", "float32", (3, 4, 4))
LOGITS, GATE = TensorSpec("logits", "float32", (2,)), TensorSpec("gate", "float32", ())


def manifest_of(tensors, segments):
    """Tensors are (maker, readers, size), by their makers in order."""
    parts = []
    for number in range(segments):
        last = number == segments - 1
        made = [(i, each) for i, each in enumerate(tensors) if each[0] == number]
        taken = [(i, each) for i, each in enumerate(tensors) if number in each[1]]
        specs = [
            tuple(TensorSpec(f"hidden_{i}", "float16", (size,)) for i, (_, _, size) in found)
            for found in (taken, made)
        ]
        results = (LOGITS,) if last else (LOGITS, GATE)
        parts.append(
            Segment(
                file=f"segment_{number}.onnx",
                sha256="0" * 64,
                at=None if last else f"layer{number}",
                macs=1,
                threshold=None if last else 0.5,
                inputs=specs[0] if number else (IMAGE,),
                outputs=(*specs[1], *results),
            )
        )
    return Manifest("any", ("a", "b"), None, (1, 4), "onnxruntime", 17, tuple(parts))


@st.composite
def networks(draw):
    segments = draw(st.integers(2, 7))
    makers = sorted(draw(st.lists(st.integers(0, segments - 2), max_size=9)))
    tensors = []
    for maker in makers:
        readers = draw(st.sets(st.integers(maker + 1, segments - 1), min_size=1))
        tensors.append((maker, readers, draw(st.integers(1, 20))))
    return tensors, segments


@given(networks())
def test_no_tensor_lies_where_another_lives(network):
    tensors, segments = network
    places = places_of(manifest_of(tensors, segments))
    for i, (maker, readers, size) in enumerate(tensors):
        assert places.image_bytes[places.of[f"hidden_{i}"]] >= 2 * size
        for j, (other_maker, other_readers, _) in enumerate(tensors[:i]):
            apart = max(other_readers) < maker or max(readers) < other_maker
            assert apart or places.of[f"hidden_{i}"] != places.of[f"hidden_{j}"]


def test_in_a_chain_two_places_take_turns():
    """The example of the docstring, in float16."""
    chain = [(0, {1}, 5), (1, {2}, 20), (2, {3}, 10)]
    places = places_of(manifest_of(chain, 4))
    assert places.of == {"hidden_0": 0, "hidden_1": 1, "hidden_2": 0}
    assert places.image_bytes == [20, 40]
