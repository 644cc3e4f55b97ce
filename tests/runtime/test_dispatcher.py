import re
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compress.errors import UserInputError
from compress.runtime.backend import Backend
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.onnxruntime_backend import OnnxRuntimeBackend
from tests.export.triton_bundles import (
    BATCH,
    CLASSES,
    SHAPE,
    THRESHOLDS,
    early_exit,
    images_with,
    save_segment,
    write_bundle,
)


class GatheringBackend(OnnxRuntimeBackend):
    """Compacts as on a GPU, by a Gather node into the other set of buffers, on the CPU."""

    _moves_in_place = False


@pytest.fixture(scope="module", params=["float32", "float16"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / request.param
    write_bundle(folder, dtype=request.param)
    return folder, request.param


@pytest.fixture(scope="module", params=[OnnxRuntimeBackend, GatheringBackend])
def dispatcher(request, bundle):
    folder, _ = bundle
    plain = Dispatcher(folder, "onnxruntime")
    with Dispatcher(folder, request.param(folder, plain.manifest, device="cpu")) as opened:
        yield opened


GATES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 2 * BATCH + 3), st.just(2)),
    elements=st.sampled_from([0.0, 0.25, np.float32(0.25) - 1e-7, 0.5, 0.75, 1.0, np.nan]),
)


@settings(deadline=None, max_examples=60)
@given(gates=GATES)
def test_a_batch_takes_the_decisions_of_image_by_image(dispatcher, bundle, gates):
    images = images_with(gates)
    logits, exits = early_exit(images, THRESHOLDS, bundle[1])
    found = dispatcher.run(images)
    assert found.exits.tolist() == exits[:, 0].tolist()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
    assert found.classes.tolist() == found.logits.argmax(1).tolist()
    one_by_one = [dispatcher.run(image) for image in images]
    assert [int(each.exits[0]) for each in one_by_one] == exits[:, 0].tolist()


def test_an_image_that_left_does_not_travel_on(dispatcher):
    gates = [[1, 0], [0, 0], [0, 1], [0, 0], [1, 1]]
    found = dispatcher.run(images_with(gates), times=True)
    assert [(segment, images) for segment, images, _ in found.segment_ms] == [
        (0, 5),
        (1, 3),
        (2, 2),
    ]
    assert all(ms > 0 for _, _, ms in found.segment_ms)
    assert dispatcher.run(images_with(gates)).segment_ms is None


def test_segments_behind_the_last_that_left_do_not_run(dispatcher):
    found = dispatcher.run(images_with([[1, 0], [1, 0]]), times=True)
    assert [segment for segment, _, _ in found.segment_ms] == [0]


def test_thresholds_compare_in_float64(dispatcher):
    """float32(0.1) is above 0.1: an image with exactly that score leaves at 0.1, as in torch."""
    dispatcher.set_thresholds([0.1, np.nextafter(float(np.float32(0.1)), 1)])
    try:
        found = dispatcher.run(images_with([[0.1, 0], [0, 0.1]]))
    finally:
        dispatcher.set_thresholds(THRESHOLDS)
    assert found.exits.tolist() == [0, 2]


def test_results_are_not_overwritten_by_the_next_call(dispatcher):
    first = dispatcher.run(images_with([[1, 0], [0, 0]], seed=1))
    kept = first.logits.copy(), first.exits.copy()
    dispatcher.run(images_with([[0, 1], [1, 0]], seed=2))
    assert (first.logits == kept[0]).all()
    assert (first.exits == kept[1]).all()


def test_thresholds_given_at_the_start_replace_those_of_the_bundle(bundle):
    with Dispatcher(bundle[0], thresholds=0.75) as dispatcher:
        assert dispatcher.manifest.thresholds == [0.75, 0.75]
        assert dispatcher.run(images_with([[0.6, 0.8]])).exits.tolist() == [1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param(np.zeros((2, 3, 2, 4), np.float32), r"expected \(N, 1, 2, 4\)", id="channels"),
        pytest.param(np.zeros((0, *SHAPE), np.float32), "N at least 1", id="none"),
        pytest.param(np.zeros((1, *SHAPE), np.float64), "float64; expected float32$", id="double"),
        pytest.param(np.zeros((1, *SHAPE), np.uint8), "uint8; expected float32$", id="unprepared"),
        pytest.param(np.zeros(4, np.float32), "have the shape", id="flat"),
    ],
)
def test_images_of_another_size_or_type_are_refused(dispatcher, images, message):
    with pytest.raises(UserInputError, match=message):
        dispatcher.run(images)


def test_memory_that_is_not_contiguous_is_read_rightly(dispatcher, bundle):
    images = images_with([[0, 0], [1, 0], [0, 1]])
    turned = np.asfortranarray(images)
    np.testing.assert_array_equal(dispatcher.run(turned).logits, dispatcher.run(images).logits)


class Recorder(Backend):
    """Says in which order it was called."""

    max_batch = 2

    def __init__(self, gates):
        self.gates, self.calls = gates, []

    def load(self, images):
        self.calls.append(("load", len(images)))

    def run(self, segment):
        self.calls.append(("run", segment))
        return np.array(self.gates[segment], np.float32) if segment < 2 else None

    def logits(self):
        self.calls.append("logits")
        return np.zeros((2 if self.calls.count("keep") == 0 else 1, CLASSES), np.float32)

    def keep(self, rows):
        self.calls.append("keep")
        assert rows.tolist() == [1]


def test_a_backend_of_ones_own_is_called_in_order(bundle):
    backend = Recorder([[1, 0], [0]])
    found = Dispatcher(bundle[0], backend).run(images_with([[0, 0], [0, 0]]))
    assert found.exits.tolist() == [0, 2]
    assert backend.calls == [
        ("load", 2),
        ("run", 0),
        "logits",
        "keep",
        ("run", 1),
        ("run", 2),
        "logits",
    ]


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(UserInputError, match="'torch'; expected one of onnxruntime, tensorrt"):
        Dispatcher(bundle[0], "torch")


def bits_of(found):
    return found.logits.tobytes(), found.exits.tolist()


def test_threads_that_share_a_dispatcher_get_the_answers_of_their_own_images(bundle):
    """Today's fault was silent: some answers were of the other thread's images."""
    rng = np.random.default_rng(0)
    jobs = [images_with(rng.random((size, 2)), seed=size) for size in (1, 1, 3, BATCH, 2)]
    with Dispatcher(bundle[0], "onnxruntime", threads=1) as dispatcher:
        expected = [bits_of(dispatcher.run(images)) for images in jobs]
        wrong = []

        def work(first):
            numbers = range(first, first + 1000)
            found = ((i, bits_of(dispatcher.run(jobs[i % 5]))) for i in numbers)
            wrong.extend(i for i, bits in found if bits != expected[i % 5])

        threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_closing_in_one_thread_does_not_pull_the_ground_from_another(bundle):
    dispatcher = Dispatcher(bundle[0], "onnxruntime", threads=1)
    images, ends = images_with(np.zeros((BATCH, 2))), []

    def work():
        try:
            while True:
                dispatcher.run(images)
        except UserInputError as err:
            ends.append(str(err))

    thread = threading.Thread(target=work)
    thread.start()
    dispatcher.close()
    thread.join(timeout=20)
    assert ends == ["the dispatcher of tiny is closed; open the bundle again"]
    dispatcher.close()


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        pytest.param(np.float32(0.75), [0.75, 0.75], id="float32"),
        pytest.param(np.array(0.75), [0.75, 0.75], id="0-d"),
        pytest.param(np.array([0.25, 1], np.float32), [0.25, 1.0], id="array"),
        pytest.param((np.float64(0.5), 1), [0.5, 1.0], id="tuple"),
    ],
)
def test_thresholds_of_numpy_are_numbers(dispatcher, thresholds, expected):
    dispatcher.set_thresholds(thresholds)
    try:
        assert dispatcher.manifest.thresholds == expected
        assert {type(bar) for bar in dispatcher.manifest.thresholds} == {float}
    finally:
        dispatcher.set_thresholds(THRESHOLDS)


@pytest.mark.parametrize(
    "thresholds",
    [None, "0.5", ["0.5", "0.5"], [None, None], True, b"\0\1", [0.5, np.nan], [[0.5], [0.5]], {}],
)
def test_thresholds_that_are_none_leave_the_former(dispatcher, thresholds):
    with pytest.raises(UserInputError, match=r"threshold"):
        dispatcher.set_thresholds(thresholds)
    assert dispatcher.manifest.thresholds == list(THRESHOLDS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_has_no_class_and_spoils_no_other(dispatcher, bad, caplog):
    images = images_with([[0, 0], [1, 0], [0, 1]])
    expected = dispatcher.run(images)
    poisoned = images.copy()
    poisoned[1, 0, 1, 3] = bad
    dispatcher._has_warned = False
    with caplog.at_level("WARNING", "compress"):
        found = [dispatcher.run(poisoned) for _ in range(2)][1]
    assert found.classes[1] == -1
    assert np.isnan(found.logits[1]).all()
    for i in (0, 2):
        assert bits_of(dispatcher.run(poisoned[i])) == bits_of(dispatcher.run(images[i]))
        assert found.classes[i] == expected.classes[i]
    assert dispatcher.run(poisoned[1]).classes.tolist() == [-1]
    assert [each.getMessage() for each in caplog.records] == [
        "tiny gave logits that are not finite for 1 of 3 images: class -1"
    ]


def test_a_weight_that_is_no_number_gives_no_class(tmp_path):
    write_bundle(tmp_path)
    model = onnx.load(tmp_path / "segment_2.onnx")
    (weights,) = (each for each in model.graph.initializer if each.name == "weights")
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0, 1] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "weights"))
    save_segment(model, tmp_path, 2)
    with Dispatcher(tmp_path, "onnxruntime") as dispatcher:
        found = dispatcher.run(images_with([[1, 0], [0, 0], [0, 1], [0, 0]]))
    assert found.exits.tolist() == [0, 2, 1, 2]
    assert (found.classes == -1).tolist() == [False, True, False, True]


def test_what_is_no_array_is_told(dispatcher):
    with pytest.raises(UserInputError, match="images are a list; expected a numpy array"):
        dispatcher.run([[0.0]])


@pytest.mark.slow
def test_memory_stays_flat_over_20000_dispatches(tmp_path):
    write_bundle(tmp_path)
    rng = np.random.default_rng(1)
    jobs = [images_with(rng.random((size, 2)), seed=size) for size in (1, 1, 2, 1, 3)]
    with Dispatcher(tmp_path, "onnxruntime", threads=1) as dispatcher:
        for i in range(1000):
            dispatcher.run(jobs[i % len(jobs)])
        before = resident_kib()
        for i in range(20_000):
            dispatcher.run(jobs[i % len(jobs)])
        assert resident_kib() - before < 2048


def resident_kib():
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1))
