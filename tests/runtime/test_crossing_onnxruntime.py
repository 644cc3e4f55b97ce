"""Several tensors of several types between segments, in ONNX Runtime, with images that leave."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import MANIFEST
from compress.runtime.onnxruntime_backend import OnnxRuntimeBackend
from compress.runtime.tensor_memory import places_of
from tests.export import triton_bundles
from tests.runtime.crossing_bundle import (
    BATCH,
    THRESHOLDS,
    early_exit,
    images_with,
    write_bundle,
)
from tests.runtime.test_dispatcher import GatheringBackend


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "unet.bundle"
    write_bundle(folder)
    return folder


@pytest.fixture(scope="module", params=[OnnxRuntimeBackend, GatheringBackend])
def dispatcher(request, bundle):
    manifest = Dispatcher(bundle, "onnxruntime").manifest
    with Dispatcher(bundle, request.param(bundle, manifest, device="cpu")) as opened:
        yield opened


GATES = st.lists(
    st.tuples(*[st.sampled_from([-0.5, 0.0, 0.234375, 0.25, 0.5, 0.75, 0.984375])] * 3),
    min_size=1,
    max_size=2 * BATCH + 3,
)


@settings(deadline=None, max_examples=80)
@given(gates=GATES, seed=st.integers(0, 99))
@example([(0, 0, 0), (0.5, 0, 0), (0, 0, 0.75), (0, 0.25, 0), (0, 0, 0), (0.5, 0, 0)], 1)
def test_a_batch_decides_as_image_by_image_whoever_leaves(dispatcher, gates, seed):
    images = images_with(gates, seed)
    logits, exits = early_exit(images)
    found = dispatcher.run(images)
    assert found.exits.tolist() == exits.tolist()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    one_by_one = [dispatcher.run(image) for image in images]
    assert [int(each.exits[0]) for each in one_by_one] == exits.tolist()
    np.testing.assert_allclose(
        np.concatenate([each.logits for each in one_by_one]), logits, rtol=1e-4, atol=1e-4
    )


def test_the_sample_images_leave_at_every_exit():
    """Else the test above would prove little."""
    gates = np.random.default_rng(0).integers(-32, 64, (200, 3)) / 64
    assert np.bincount(early_exit(images_with(gates))[1], minlength=4).min() > 10


def test_a_tensor_that_skips_segments_keeps_its_place_and_others_share(bundle):
    """At most four cross at a time; hidden_4 takes the place that hidden_1 left."""
    manifest = Dispatcher(bundle, "onnxruntime").manifest
    places = places_of(manifest)
    assert len(places.image_bytes) == 4
    assert places.of["hidden_4"] == places.of["hidden_1"]
    assert len({places.of[f"hidden_{i}"] for i in (0, 1, 2, 3)}) == 4
    assert places.image_bytes[places.of["hidden_1"]] == 32  # of float32, the larger of the two


def test_images_of_the_next_batch_do_not_meet_those_of_the_last(dispatcher):
    """Behind a batch that was compacted, a full one: every buffer is written anew."""
    first, second = images_with([(0.5, 0, 0), (0, 0, 0)] * 4, 1), images_with([(0, 0, 0)] * 8, 2)
    dispatcher.run(first)
    np.testing.assert_allclose(
        dispatcher.run(second).logits, early_exit(second)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("batch", [1, BATCH])
def test_thresholds_of_ones_own(tmp_path, batch):
    write_bundle(tmp_path, batch=batch)
    images = images_with(np.random.default_rng(3).integers(0, 64, (20, 3)) / 64)
    bars = [1.0, *THRESHOLDS[1:]]
    with Dispatcher(tmp_path, "onnxruntime", thresholds=bars) as opened:
        assert opened.run(images).exits.tolist() == early_exit(images, bars)[1].tolist()


def test_a_file_that_gives_another_type_than_its_manifest_says_is_refused(tmp_path):
    write_bundle(tmp_path)
    value = json.loads((tmp_path / MANIFEST).read_text())
    for number, side in ((1, "outputs"), (2, "inputs")):
        for spec in value["segments"][number][side]:
            if spec["name"] == "hidden_2":
                spec["dtype"] = "int32"
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(UserInputError, match=r"gives hidden_2 tensor\(int64\).* says int32"):
        Dispatcher(tmp_path, "onnxruntime")


def test_files_of_segments_that_were_exchanged_are_refused_though_their_shapes_fit(tmp_path):
    """Segments 0 and 1 of a chain trade their files, and the manifest the sha256 of them."""
    triton_bundles.write_bundle(tmp_path, thresholds=(0.5, 0.25, 0.5))
    value = json.loads((tmp_path / MANIFEST).read_text())
    one, two = value["segments"][1:3]
    for key in ("file", "sha256"):
        one[key], two[key] = two[key], one[key]
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(UserInputError, match=r"segment_2.onnx takes hidden_1, its manifest says"):
        Dispatcher(tmp_path, "onnxruntime")


def test_the_bundle_is_what_its_docstring_says(bundle):
    """The int64, the bool and the halves are in the files, not only in the manifest."""
    kinds = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for number in range(4)
        for value in onnx.load(bundle / f"segment_{number}.onnx").graph.output
    }
    crossing = {name: kind for name, kind in kinds.items() if name.startswith("hidden")}
    assert crossing == {
        "hidden_0": "FLOAT",
        "hidden_1": "FLOAT16",
        "hidden_2": "INT64",
        "hidden_3": "BOOL",
        "hidden_4": "FLOAT",
    }
