"""Which tensors cross between segments: what a manifest may say, and what lives until when."""

import json

import pytest

from compress.errors import UserInputError
from compress.runtime.manifest import (
    MANIFEST,
    Manifest,
    Segment,
    TensorSpec,
    read_manifest,
    write_manifest,
)

IMAGE = TensorSpec("image", "float32", (3, 4, 4))
LOGITS, GATE = TensorSpec("logits", "float32", (2,)), TensorSpec("gate", "float32", ())
SKIP = TensorSpec("hidden_0", "float32", (6, 4, 4))
DEEP = TensorSpec("hidden_1", "float16", (6, 2, 2))
PLACES = TensorSpec("hidden_2", "int64", (5,))
MASK = TensorSpec("hidden_3", "bool", ())


def segment(number, inputs, gives, last=False):
    return Segment(
        file=f"segment_{number}.onnx",
        sha256="0" * 64,
        at=None if last else f"layer{number}.1",
        macs=1,
        threshold=None if last else 0.5,
        inputs=inputs,
        outputs=(*gives, LOGITS) if last else (*gives, LOGITS, GATE),
    )


def unet():
    """Segment 1 does not touch what segment 2 takes from segment 0, nor does segment 2 the mask."""
    segments = (
        segment(0, (IMAGE,), (SKIP, DEEP)),
        segment(1, (DEEP,), (PLACES, MASK)),
        segment(2, (IMAGE, SKIP, PLACES), ()),
        segment(3, (MASK, SKIP), (), last=True),
    )
    return Manifest("unet", ("a", "b"), None, (1, 4), "onnxruntime", 17, segments)


@pytest.fixture
def bundle(tmp_path):
    write_manifest(unet(), tmp_path)
    return tmp_path


def read_changed(bundle, change):
    path = bundle / MANIFEST
    value = json.loads(path.read_text())
    change(value["segments"], value)
    path.write_text(json.dumps(value))
    return read_manifest(bundle, check_files=False)


def test_what_crosses_is_written_and_read_back(bundle):
    manifest = read_manifest(bundle, check_files=False)
    assert manifest == unet()
    assert [part.gives for part in manifest.segments] == [(SKIP, DEEP), (PLACES, MASK), (), ()]
    assert [part.at for part in manifest.segments] == ["layer0.1", "layer1.1", "layer2.1", None]


def test_a_tensor_lives_from_its_maker_to_its_last_reader():
    manifest = unet()
    assert manifest.living(0) == (IMAGE, SKIP, DEEP)
    assert manifest.living(1) == (IMAGE, SKIP, PLACES, MASK)
    assert manifest.living(2) == (SKIP, MASK)
    assert manifest.living(3) == ()


def test_the_bytes_of_one_image():
    assert [spec.image_bytes for spec in (SKIP, DEEP, PLACES, MASK, GATE)] == [384, 48, 40, 1, 4]


def spec(parts, number, side, place):
    return parts[number][side][place]


def exchanged(parts, value):
    """Segments 1 and 2 of a network where both have the same shapes, all in one another's place."""
    parts[1], parts[2] = parts[2], parts[1]


def many(parts, value):
    extra = [{"name": f"hidden_{i}", "dtype": "bool", "shape": []} for i in range(4, 4 + 257)]
    parts[1]["outputs"][2:2] = extra


def large(parts, value):
    """Each tensor alone is allowed in the largest batch, both together are not."""
    value["batch"] = [1, 4096]
    for number, side, place in ((0, "outputs", 0), (2, "inputs", 1), (3, "inputs", 1)):
        spec(parts, number, side, place)["shape"] = [3 << 18]
    for number, side, place in ((0, "outputs", 1), (1, "inputs", 0)):
        spec(parts, number, side, place)["shape"] = [3 << 18]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda p, v: p[3]["inputs"].pop(0), "no segment takes hidden_3", id="never-taken"
        ),
        pytest.param(
            lambda p, v: p[1]["outputs"].pop(1),
            "segment_3.onnx takes 'hidden_3', which no segment before it gives",
            id="never-made",
        ),
        pytest.param(
            lambda p, v: p[1]["inputs"].append(dict(spec(p, 1, "outputs", 0))),
            "segment_1.onnx has two tensors of the name 'hidden_2'",
            id="taken-where-it-is-made",
        ),
        pytest.param(
            lambda p, v: p[0].update(inputs=[dict(spec(p, 3, "inputs", 0))]),
            "the first segment takes hidden_3",
            id="taken-before-it-is-made",
        ),
        pytest.param(
            lambda p, v: p[2]["outputs"].insert(0, dict(spec(p, 0, "outputs", 0), alias="x")),
            "two tensors of the name 'hidden_0'",
            id="made-of-itself",
        ),
        pytest.param(
            lambda p, v: p[1]["outputs"].insert(0, dict(spec(p, 0, "outputs", 0))),
            "segment_1.onnx gives 'hidden_0', expected hidden_2",
            id="made-twice",
        ),
        pytest.param(
            lambda p, v: p[0]["outputs"].insert(0, p[0]["outputs"].pop(1)),
            "segment_0.onnx gives 'hidden_1', expected hidden_0",
            id="numbered-otherwise",
        ),
        pytest.param(
            lambda p, v: spec(p, 1, "outputs", 0).update(name="places"),
            "segment_1.onnx gives 'places', expected hidden_2",
            id="another-name",
        ),
        pytest.param(
            lambda p, v: p[1]["outputs"].reverse(), "does not give", id="results-before-crossing"
        ),
        pytest.param(
            lambda p, v: p[2]["outputs"].pop(1), "does not give logits, gate", id="no-gate"
        ),
        pytest.param(
            lambda p, v: p[2]["outputs"].pop(0), "does not give logits, gate", id="no-logits"
        ),
        pytest.param(
            lambda p, v: spec(p, 3, "inputs", 0).update(dtype="int32"),
            "takes hidden_3 of another type or shape",
            id="type",
        ),
        pytest.param(
            lambda p, v: spec(p, 2, "inputs", 0).update(shape=[3, 4, 5]),
            "takes image of another type or shape",
            id="another-image",
        ),
        pytest.param(
            lambda p, v: spec(p, 1, "outputs", 0).update(dtype="float64"),
            "a tensor of shape",
            id="unknown-type",
        ),
        pytest.param(
            lambda p, v: spec(p, 1, "outputs", 0).update(dtype=["bool"]),
            "in place of text",
            id="type-that-is-a-list",
        ),
        pytest.param(
            lambda p, v: spec(p, 1, "outputs", 0).update(alias="gate"),
            "two tensors of the name 'gate'",
            id="alias-of-another",
        ),
        pytest.param(
            lambda p, v: spec(p, 1, "outputs", 0).update(alias="a\x1b[2J"),
            "in place of a name",
            id="alias-not-printable",
        ),
        pytest.param(exchanged, "takes 'hidden_2', which no segment before it", id="exchanged"),
        pytest.param(many, "in place of a list", id="many-tensors"),
        pytest.param(large, r"4096 images of \d+ bytes at a time", id="too-large-together"),
    ],
)
def test_crossings_that_cannot_be_are_refused(bundle, change, message):
    with pytest.raises(UserInputError, match=message) as caught:
        read_changed(bundle, change)
    assert "\n" not in str(caught.value)


def test_more_tensors_than_any_network_has_are_refused_at_once(bundle):
    def change(parts, value):
        wide = [{"name": f"hidden_{i}", "dtype": "bool", "shape": []} for i in range(200)]
        parts[0]["outputs"][:2] = wide
        parts[1].update(inputs=wide, outputs=parts[1]["outputs"][2:])
        parts[3]["inputs"] = wide
        again = [{**parts[1], "file": f"{i}.onnx", "at": f"layer1.{i}"} for i in range(50)]
        value["segments"] = [parts[0], *again, parts[3]]

    with pytest.raises(UserInputError, match="its segments name 10504 tensors, more than 8192"):
        read_changed(bundle, change)
