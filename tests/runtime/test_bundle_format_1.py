"""A bundle that the last version of format 1 wrote: `format_1.bundle`, three segments, float16."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compress.errors import UserInputError
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import MANIFEST, TensorSpec, read_manifest, write_manifest
from compress.runtime.onnxruntime_backend import OnnxRuntimeBackend
from tests.export.triton_bundles import BATCH, THRESHOLDS, early_exit, images_with
from tests.runtime.test_dispatcher import GatheringBackend

OLD = Path(__file__).with_name("format_1.bundle")


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(OLD, tmp_path / "bundle")


def read_changed(bundle, change):
    path = bundle / MANIFEST
    value = json.loads(path.read_text())
    change(value["segments"])
    path.write_text(json.dumps(value))
    return read_manifest(bundle, check_files=False)


def test_its_segments_are_told_in_the_words_of_this_format(bundle):
    manifest = read_manifest(bundle)
    assert [part.at for part in manifest.segments] == ["blocks.0", "blocks.1", None]
    assert manifest.thresholds == [0.5, 0.25]
    made = [
        TensorSpec("hidden_0", "float16", (8,), "hidden"),
        TensorSpec("hidden_1", "float16", (8,), "hidden"),
    ]
    assert [part.gives for part in manifest.segments] == [(made[0],), (made[1],), ()]
    assert manifest.living(0) == (made[0],)
    assert [part.inputs[0].file_name for part in manifest.segments] == [
        "image",
        "hidden_in",
        "hidden_in",
    ]


def test_written_again_it_is_of_this_format_and_the_same(bundle):
    manifest = read_manifest(bundle)
    write_manifest(manifest, bundle)
    assert json.loads((bundle / MANIFEST).read_text())["format"] == "compress.bundle/2"
    assert read_manifest(bundle) == manifest


def swap(parts):
    """Segments 1 and 2 keep their places and trade what they compute."""
    parts[1]["blocks"], parts[2]["blocks"] = parts[2]["blocks"], parts[1]["blocks"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(swap, "segment 1 begins at block 2", id="swap"),
        pytest.param(lambda parts: parts.pop(1), "segment 1 begins at block 2", id="middle-gone"),
        pytest.param(lambda parts: parts[0].update(blocks=[1, 1]), "begins at block 1", id="start"),
        pytest.param(lambda parts: parts[1].update(blocks=[1, 1]), "holds no block", id="no-block"),
        pytest.param(lambda parts: parts[1].pop("blocks"), "'blocks' is missing", id="blocks-gone"),
        pytest.param(lambda parts: parts.__setitem__(1, 7), "in place of an object", id="number"),
        pytest.param(
            lambda parts: parts[1]["inputs"].append(parts[0]["inputs"][0]),
            "segment 1 takes more than one tensor",
            id="two-inputs",
        ),
        pytest.param(
            lambda parts: parts[1]["inputs"][0].update(shape=[9]), "another type", id="shape"
        ),
        pytest.param(
            lambda parts: parts[0]["outputs"].pop(0), "no segment before it gives", id="no-hidden"
        ),
        pytest.param(
            lambda parts: parts[1]["inputs"][0].update(name="hidden"), "two tensors", id="name"
        ),
    ],
)
def test_what_cannot_be_is_refused_as_before(bundle, change, message):
    with pytest.raises(UserInputError, match=message) as caught:
        read_changed(bundle, change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", [OnnxRuntimeBackend, GatheringBackend])
def test_it_decides_as_numpy_and_as_it_did(bundle, backend):
    gates = np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, np.nan], (3 * BATCH, 2))
    images = images_with(gates)
    logits, exits = early_exit(images, THRESHOLDS, "float16")
    runner = backend(bundle, read_manifest(bundle), device="cpu")
    with Dispatcher(bundle, runner) as dispatcher:
        found = dispatcher.run(images)
        assert found.exits.tolist() == exits[:, 0].tolist()
        np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
        for image, exit_index in zip(images, exits[:, 0], strict=True):
            assert dispatcher.run(image).exits.tolist() == [exit_index]
    assert np.bincount(exits[:, 0]).min() > 2


def test_written_again_it_still_runs(bundle):
    write_manifest(read_manifest(bundle), bundle)
    with Dispatcher(bundle, "onnxruntime") as dispatcher:
        assert dispatcher.run(images_with([[1, 0], [0, 0], [0, 1]])).exits.tolist() == [0, 2, 1]
