import json

import pytest

from compress.errors import UserInputError
from compress.runtime.manifest import MANIFEST, read_manifest, write_manifest
from compress.runtime.preprocessing import Preprocessing
from tests.export.triton_bundles import write_bundle


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def altered(bundle, change):
    path = bundle / MANIFEST
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return bundle


def test_what_is_written_is_read_back(bundle):
    manifest = read_manifest(bundle)
    write_manifest(manifest, bundle)
    assert read_manifest(bundle) == manifest
    assert manifest.exits == 2
    assert manifest.thresholds == [0.5, 0.25]
    assert [segment.stem for segment in manifest.segments] == [f"segment_{i}" for i in range(3)]


def test_other_thresholds_leave_the_rest_as_it_is(bundle):
    manifest = read_manifest(bundle)
    changed = manifest.with_thresholds(0.7)
    assert changed.thresholds == [0.7, 0.7]
    assert changed.with_thresholds([0.5, 0.25]) == manifest
    with pytest.raises(UserInputError, match="3 thresholds for 2 exits"):
        manifest.with_thresholds([0.1, 0.2, 0.3])


def first(value):
    return value["segments"][0]


def put(*path):
    """A change that sets `path[-1]` at the place that the rest of the path names."""

    def change(value):
        for key in path[:-2]:
            value = value[key]
        value[path[-2]] = path[-1]

    return change


def swap(value):
    """The last two segments trade their places, as in a copy by hand."""
    value["segments"][1:3] = reversed(value["segments"][1:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(put("format", "compress.bundle/3"), "'compress.bundle/3'; this", id="newer"),
        pytest.param(put("segments", []), "in place of a list", id="no-segments"),
        pytest.param(put("segments", 0, "file", "../a.onnx"), "not a plain name", id="outside"),
        pytest.param(put("segments", 0, "file", "/a.onnx"), "not a plain name", id="absolute"),
        pytest.param(put("segments", 0, "file", "segment_1.onnx"), "in one file", id="twice"),
        pytest.param(put("segments", 0, "threshold", 1.5), "threshold is 1.5", id="threshold"),
        pytest.param(put("segments", 0, "threshold", "0.5"), "in place of a number", id="text"),
        pytest.param(put("segments", 0, "threshold", 10**400), "too large", id="longest"),
        pytest.param(put("segments", 0, "threshold", None), "threshold None", id="no-threshold"),
        pytest.param(put("segments", 2, "threshold", 0.5), "threshold 0.5", id="last-threshold"),
        pytest.param(put("segments", 1, "inputs", 0, "shape", [9]), "another type", id="shapes"),
        pytest.param(
            put("segments", 1, "inputs", 0, "dtype", "float16"), "another type", id="type"
        ),
        pytest.param(put("segments", 0, "inputs", 0, "shape", [1, 2, 1 << 40]), "whole", id="huge"),
        pytest.param(
            put("segments", 0, "inputs", 0, "shape", [1 << 20, 1 << 20, 1]),
            "a tensor",
            id="product",
        ),
        pytest.param(put("segments", 0, "inputs", 0, "dtype", "object"), "a tensor", id="dtype"),
        pytest.param(put("segments", 0, "macs", -1), "whole number", id="macs"),
        pytest.param(put("segments", 0, "macs", True), "whole number", id="bool"),
        pytest.param(put("segments", 0, "precision", "fp8"), "precision 'fp8'", id="precision"),
        pytest.param(put("classes", ["a", "b"]), "than 2 classes", id="classes"),
        pytest.param(put("batch", [2, 8]), "from 2 images on", id="smallest-batch"),
        pytest.param(put("batch", [1]), "not enough values", id="half-a-batch"),
        pytest.param(lambda value: value.pop("opset"), "'opset' is missing", id="missing"),
        pytest.param(put("batch", [1, 10**6]), "1000000 in place", id="batch-of-a-million"),
        pytest.param(put("batch", [1, 4096, 1]), "in place of a list", id="batch-of-three"),
        pytest.param(put("opset", 10**6), "1000000 in place", id="opset"),
        pytest.param(put("name", "x" * 1001), "in place of text", id="long-name"),
        pytest.param(put("segments", 0, "sha256", "z" * 64), "sha256 'zz", id="sha256"),
        pytest.param(put("segments", 0, "file", "a\x1b.onnx"), "a.x1b", id="control"),
        pytest.param(put("segments", 0, "inputs", 0, "shape", [1] * 9), "list", id="rank"),
        pytest.param(put("segments", 0, "macs", float("nan")), "NaN in place", id="NaN"),
        pytest.param(put("notes", "drift", float("inf")), "Infinity in place", id="note"),
        pytest.param(swap, "threshold None", id="swap"),
        pytest.param(lambda v: v["segments"].pop(0), "the first segment takes", id="first-gone"),
        pytest.param(
            lambda v: v["segments"].pop(1), "takes 'hidden_1', which no", id="middle-gone"
        ),
        pytest.param(lambda v: v["segments"].pop(2), "segment_1.onnx", id="last-gone"),
        pytest.param(put("segments", 1, "at", "column.0"), "two exits at 'column.0'", id="same-at"),
        pytest.param(put("segments", 1, "at", None), "its exit at None", id="no-at"),
        pytest.param(put("segments", 1, "at", ""), "its exit at ''", id="empty-at"),
        pytest.param(put("segments", 2, "at", "end"), "its exit at 'end'", id="last-at"),
        pytest.param(put("segments", 1, "at", "a\x1b[2J"), "in place of a name", id="control-at"),
        pytest.param(put("segments", 1, "at", "a" * 1001), "in place of text", id="long-at"),
        pytest.param(put("segments", 1, "at", 7), "in place of text", id="number-at"),
        pytest.param(put("preprocessing", {}), "preprocessing has the fields", id="preprocessing"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_in_one_sentence(bundle, change, message):
    with pytest.raises(UserInputError, match=message) as caught:
        read_manifest(altered(bundle, change), check_files=False)
    assert "\n" not in str(caught.value)


def test_preprocessing_to_another_size_is_refused(bundle):
    square = Preprocessing(16, "pillow-bicubic", 16, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserInputError, match=r"\[1, 2, 4\], preprocessing to \[3, 16, 16\]"):
        read_manifest(altered(bundle, put("preprocessing", square.to_dict())))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000, b"NaN"])
def test_a_damaged_manifest_is_refused(bundle, content):
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(UserInputError, match="manifest"):
        read_manifest(bundle)


def test_an_altered_segment_is_refused(bundle):
    file = bundle / "segment_1.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserInputError, match=r"segment_1.onnx has sha256 .* altered"):
        read_manifest(bundle)
    read_manifest(bundle, check_files=False)


def test_a_missing_segment_and_a_missing_bundle_are_told(bundle, tmp_path):
    (bundle / "segment_2.onnx").unlink()
    with pytest.raises(UserInputError, match=r"segment_2.onnx does not exist"):
        read_manifest(bundle)
    with pytest.raises(UserInputError, match="is not a folder"):
        read_manifest(tmp_path / "nothing")


def test_nothing_inconsistent_is_written(bundle):
    manifest = read_manifest(bundle)
    before = (bundle / MANIFEST).read_bytes()
    broken = type(manifest)(**{**vars(manifest), "classes": ("a",)})
    with pytest.raises(ValueError, match="than 1 classes"):
        write_manifest(broken, bundle)
    assert (bundle / MANIFEST).read_bytes() == before
