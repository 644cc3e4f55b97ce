"""Outputs beside the logits: in manifests, on a TensorRT that notes misuse, when dispatched."""

import json
from dataclasses import replace

import numpy as np
import pytest

from compress.errors import UserInputError
from compress.runtime.backend import Backend
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import MANIFEST, TensorSpec, read_manifest
from tests.runtime.engine_bundles import ERAS, opened, sample_images, write_bundle
from tests.runtime.fake_cuda import FakeDevice
from tests.runtime.fake_tensorrt import segment_values

LOGITS = TensorSpec("logits", "float32", (4,))
BOXES = TensorSpec("heads.0", "float32", (5, 3))  # 60 bytes: no whole unit of memory
LABELS = TensorSpec("labels", "int32", (3,))
CLASSIFIER, DETECTOR = (LOGITS, BOXES, LABELS), (BOXES, LABELS)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def bundle(given, batch=(1, 8), era="10"):
        key = f"{given[0].name}-{batch[1]}-{era}"
        if key not in made:
            made[key] = write_bundle(folder / key, batch=batch, exits=0, era=era, given=given)
        return made[key]

    return bundle


def expected(given, images):
    values = segment_values(0, given, {"image": images})
    return {spec.name: values[spec.name].astype(spec.dtype) for spec in given}


@pytest.mark.parametrize("use_graphs", [True, False])
@pytest.mark.parametrize("batch", [(1, 1), (1, 8)])
@pytest.mark.parametrize("given", [CLASSIFIER, DETECTOR], ids=["classifier", "detector"])
@pytest.mark.parametrize("era", ERAS)
def test_tensorrt_gives_all_outputs_of_every_image(bundles, era, given, batch, use_graphs):
    bundle = bundles(given, batch, era)
    with opened(bundle, era=era, use_graphs=use_graphs) as (backend, _):
        dispatcher = Dispatcher(bundle, backend)
        for count in (1, 19, 8):
            images = sample_images(count, seed=count)
            done, wanted = dispatcher.run(images), expected(given, images)
            assert list(done.outputs) == ["heads.0", "labels"]
            for name, value in done.outputs.items():
                np.testing.assert_array_equal(value, wanted[name])
                assert value.dtype == wanted[name].dtype
            if given is CLASSIFIER:
                np.testing.assert_array_equal(done.logits, wanted["logits"])
                np.testing.assert_array_equal(done.classes, wanted["logits"].argmax(1))
            else:
                assert done.classes.tolist() == [-1] * count
                assert done.logits.shape == (count, 0)


def test_on_tensorrt_further_outputs_travel_only_when_asked_for(bundles):
    with opened(bundles(CLASSIFIER)) as (backend, device):
        backend.load(sample_images(8))
        backend.run(0)
        before = device.count("cudaMemcpyAsync")
        backend.logits()
        assert device.count("cudaMemcpyAsync") == before
        kept = backend.outputs()
        assert device.count("cudaMemcpyAsync") == before + 2
        backend.load(sample_images(8, seed=1))
        backend.run(0)
        backend.outputs()
    wanted = expected(CLASSIFIER, sample_images(8))
    np.testing.assert_array_equal(kept["heads.0"], wanted["heads.0"])


def test_a_chain_asks_for_no_outputs_and_has_none(tmp_path):
    with opened(write_bundle(tmp_path / "chain")) as (backend, _):
        backend.outputs = lambda: pytest.fail("asked")
        assert Dispatcher(tmp_path / "chain", backend).run(sample_images(5)).outputs == {}


def test_a_failure_of_any_cuda_call_leaves_nothing_behind(bundles):
    bundle, device = bundles(CLASSIFIER), FakeDevice()
    with opened(bundle, device=device) as (backend, _):
        Dispatcher(bundle, backend).run(sample_images(3))
    for call in range(1, device.calls + 1):
        broken, error = FakeDevice(fail_at=call), None
        try:
            with opened(bundle, device=broken) as (backend, _):
                Dispatcher(bundle, backend).run(sample_images(3))
        except Exception as err:
            error = type(err).__name__  # its frames would hold what they made
        assert error in (None, "ToolchainError")
        assert (broken.faults, broken.leaks()) == ([], {})


def test_an_engine_that_gives_another_type_is_foreign(tmp_path):
    def change(engines):
        engines[0]["tensors"][-1][2] = "float32"

    write_bundle(tmp_path / "bundle", exits=0, given=CLASSIFIER, change=change)
    with (
        pytest.raises(UserInputError, match=r"gives labels float32 .* expected .* labels int32"),
        opened(tmp_path / "bundle"),
    ):
        pass


class OldBackend(Backend):
    """As somebody wrote it before there were further outputs."""

    max_batch = 8

    def load(self, images):
        self.rows = len(images)

    def run(self, segment):
        return None

    def logits(self):
        return np.ones((self.rows, 4), dtype=np.float32)


def test_a_backend_that_knows_of_no_outputs_gives_none(bundles):
    done = Dispatcher(bundles(CLASSIFIER), OldBackend()).run(sample_images(10))
    assert done.outputs == {}
    assert done.classes.tolist() == [0] * 10


def test_a_closed_dispatcher_says_so(bundles):
    dispatcher = Dispatcher(bundles(CLASSIFIER), OldBackend())
    dispatcher.close()
    with pytest.raises(UserInputError, match="is closed"):
        dispatcher.run(sample_images(1))


def test_the_manifest_knows_logits_from_the_rest(bundles):
    manifest = read_manifest(bundles(CLASSIFIER))
    assert manifest.further_outputs == DETECTOR
    assert read_manifest(bundles(DETECTOR)).further_outputs == DETECTOR
    assert read_manifest(bundles(DETECTOR)).classes == ()


def renamed(name):
    return lambda value: value["segments"][0]["outputs"][-1].update(name=name)


@pytest.mark.parametrize(
    ("given", "change", "message"),
    [
        pytest.param(CLASSIFIER, renamed("heads.0"), "of the name 'heads.0'", id="twice"),
        pytest.param(CLASSIFIER, renamed("hidden"), "'hidden', which is no name", id="hidden"),
        pytest.param(CLASSIFIER, renamed("a b"), "'a b', which is no name", id="not-plain"),
        pytest.param(CLASSIFIER, renamed("a\n"), "in place of a name", id="control"),
        pytest.param(CLASSIFIER, renamed(""), "'', which is no name", id="empty"),
        pytest.param(
            CLASSIFIER, lambda v: v.update(classes=[]), "does not give heads.0", id="no-classes"
        ),
        pytest.param(
            DETECTOR, lambda v: v.update(classes=["a"]), "does not give logits", id="no-logits"
        ),
        pytest.param(
            CLASSIFIER, lambda v: v["segments"][0]["outputs"].reverse(), "not give", id="order"
        ),
        pytest.param(
            CLASSIFIER,
            lambda v: v["segments"][0]["outputs"][0].update(dtype="int32"),
            "other logits",
            id="whole-logits",
        ),
        pytest.param(
            CLASSIFIER,
            lambda v: v["segments"][0]["outputs"][1].update(dtype="int64"),
            "gives 'heads.0' of type int64",
            id="long-numbers",
        ),
        pytest.param(
            CLASSIFIER,
            lambda v: v["segments"][0].update(outputs=[]),
            "in place of a list",
            id="no-outputs",
        ),
    ],
)
def test_outputs_that_cannot_be_are_refused(tmp_path, given, change, message):
    path = write_bundle(tmp_path / "bundle", exits=0, given=given) / MANIFEST
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserInputError, match=message):
        read_manifest(path.parent)


def test_a_network_with_exits_has_no_further_outputs(tmp_path):
    with pytest.raises(ValueError, match=r"segment_3.onnx does not give logits, and no more"):
        write_bundle(tmp_path / "bundle", given=CLASSIFIER)


def test_an_image_that_is_not_finite_has_no_outputs(bundles):
    images = sample_images(3)
    images[1, 0, 0, 0] = np.inf
    bundle = bundles(CLASSIFIER)
    with opened(bundle) as (backend, _):
        done = Dispatcher(bundle, backend).run(images)
    wanted = expected(CLASSIFIER, sample_images(3))
    assert np.isnan(done.outputs["heads.0"][1]).all()
    assert (done.outputs["labels"][1] == -1).all()
    np.testing.assert_array_equal(done.outputs["labels"][[0, 2]], wanted["labels"][[0, 2]])


def test_engine_shapes_are_compared_for_every_output(tmp_path):
    folder = write_bundle(tmp_path / "bundle", exits=0, given=CLASSIFIER)
    manifest = read_manifest(folder)
    other = replace(manifest.segments[0], outputs=(LOGITS, replace(BOXES, shape=(4, 3)), LABELS))
    (folder / MANIFEST).write_text(json.dumps(replace(manifest, segments=(other,)).to_dict()))
    with pytest.raises(UserInputError, match="is not of this bundle"), opened(folder):
        pass
