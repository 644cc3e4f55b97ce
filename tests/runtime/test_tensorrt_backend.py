"""The TensorRT backend against a CUDA and a TensorRT that note every misuse (see fake_cuda)."""

import gc
import json
import logging
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.errors import CompressError, ToolchainError, UserInputError
from compress.runtime import tensorrt_backend
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import MANIFEST, read_manifest
from compress.runtime.row_sizes import row_sizes, size_for
from compress.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime.engine_bundles import (
    ERAS,
    MIXED,
    UNET,
    assert_decides,
    decided,
    engine_value,
    given_by,
    opened,
    sample_images,
    write_bundle,
    write_engine_files,
)
from tests.runtime.fake_cuda import FakeDevice


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def bundle(dtype="float32", batch=(1, 8), exits=3, era="10"):
        key = f"{dtype}-{batch[1]}-{exits}-{era}"
        if key not in made:
            made[key] = write_bundle(folder / key, dtype=dtype, batch=batch, exits=exits, era=era)
        return made[key]

    return bundle


def test_the_sample_network_has_every_kind_of_decision(bundles):
    """Else the tests below would prove little."""
    _, exits = decided(bundles(), sample_images(400))
    assert np.bincount(exits).min() > 20
    first = read_manifest(bundles()).segments[0]
    assert np.isnan(given_by(0, first, {"image": sample_images(400)})["gate"]).any()
    _, exits = decided(bundles(UNET), sample_images(400))
    assert np.bincount(exits).min() > 20


@pytest.mark.parametrize("use_graphs", [True, False])
@pytest.mark.parametrize("batch", [(1, 1), (1, 8)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", UNET])
@pytest.mark.parametrize("era", ERAS)
def test_decisions_are_those_of_plain_numpy_image_by_image(bundles, era, dtype, batch, use_graphs):
    bundle = bundles(dtype, batch, era=era)
    with opened(bundle, era=era, use_graphs=use_graphs) as (backend, _):
        assert_decides(backend, bundle, sample_images(40))


@settings(max_examples=100, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.integers(0, 2**32), min_size=1, max_size=11), min_size=1, max_size=4
    ),
    bars=st.tuples(*[st.floats(0, 1)] * 3),
    dtype=st.sampled_from(["float32", UNET]),
    era=st.sampled_from(ERAS),
    use_graphs=st.booleans(),
)
@example([list(range(8)), [3], list(range(8))], MIXED, "float32", "10", True)
@example([list(range(8)), [3], list(range(8))], MIXED, UNET, "10", True)
def test_any_images_leave_in_any_pattern(bundles, batches, bars, dtype, era, use_graphs):
    bundle = bundles(dtype, era=era)
    with opened(bundle, era=era, use_graphs=use_graphs) as (backend, _):
        dispatcher = Dispatcher(bundle, backend, thresholds=bars)
        for seeds in batches:
            images = np.concatenate([sample_images(1, seed) for seed in seeds])
            done = dispatcher.run(images)
            logits, exits = decided(bundle, images, bars)
            np.testing.assert_array_equal(done.exits, exits)
            np.testing.assert_array_equal(done.logits, logits)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_survivors_in_any_pattern_keep_their_states_gates_and_logits(bundles, data):
    """The backend alone, with leave patterns that no gate would give."""
    bundle = bundles(data.draw(st.sampled_from(["float32", UNET])))
    manifest, images = read_manifest(bundle), sample_images(8, data.draw(st.integers(0, 99)))
    with opened(bundle) as (backend, _):
        backend.load(images)
        values = {"image": images}
        for number, segment in enumerate(manifest.segments):
            gates = backend.run(number)
            values.update(given_by(number, segment, values))
            np.testing.assert_array_equal(backend.logits(), values["logits"].astype(np.float32))
            if gates is None:
                break
            np.testing.assert_array_equal(gates, values["gate"].astype(np.float32))
            stays = data.draw(st.sets(st.integers(0, len(gates) - 1), min_size=1))
            rows = np.array(sorted(stays))
            if len(rows) < len(gates):
                backend.keep(rows)
            values = {name: content[rows] for name, content in values.items()}


def test_logits_are_still_those_of_the_batch_after_keep(bundles):
    with opened(bundles()) as (backend, _):
        backend.load(sample_images(8))
        backend.run(0)
        before = backend.logits().copy()
        backend.keep(np.array([2, 5, 7]))
        np.testing.assert_array_equal(backend.logits(), before)


@pytest.mark.parametrize(
    ("stays", "copies"),
    [
        pytest.param([0, 1, 2], 0, id="those in front stay where they are"),
        pytest.param([1, 2, 3, 4, 5, 6, 7], 1, id="the last row fills the first"),
        pytest.param([4, 5, 6, 7], 1, id="neighbours travel together"),
        pytest.param([0, 2, 4, 6, 7], 2, id="as many rows move as were left in front"),
    ],
)
def test_compaction_copies_as_little_as_can_be(bundles, stays, copies):
    with opened(bundles()) as (backend, device):
        backend.load(sample_images(8))
        backend.run(0)
        before = device.count("cudaMemcpyAsync")
        backend.keep(np.array(stays))
        assert device.count("cudaMemcpyAsync") - before == copies


def test_compaction_moves_every_tensor_that_lives_and_no_other(bundles):
    """Behind segment 1 the image, hidden 0, 2 and 3 live; behind segment 2 hidden 3 and 4."""
    with opened(bundles(UNET)) as (backend, device):
        backend.load(sample_images(8))
        for segment, copies in ((0, 3), (1, 4), (2, 2)):
            backend.run(segment)
            before = device.count("cudaMemcpyAsync")
            backend.keep(np.arange(1, 8 - segment))  # one row moves
            assert device.count("cudaMemcpyAsync") - before == copies


def test_tensors_that_never_live_at_once_share_memory(bundles):
    """A chain needs two places, however long; three cross the U-Net's widest cut at a time."""
    with opened(bundles()) as (_, device):
        chain = device.count("cudaMalloc")
    with opened(bundles(exits=2)) as (_, device):
        assert device.count("cudaMalloc") == chain
    with opened(bundles(UNET)) as (_, device):
        assert device.count("cudaMalloc") == chain + 2


def test_a_bundle_of_format_1_decides_as_it_did(tmp_path):
    """Its files have `hidden_in` and `hidden` for whatever crosses."""
    bundle = write_bundle(tmp_path / "new")
    manifest = read_manifest(bundle)
    value = manifest.to_dict()
    value["format"] = "compress.bundle/1"
    for i, part in enumerate(value["segments"]):
        del part["at"]
        part["blocks"] = [i, i + 1]
        for spec in part["inputs"]:
            spec["name"] = "hidden_in" if i else "image"
        for spec in part["outputs"]:
            spec["name"] = "hidden" if spec["name"].startswith("hidden") else spec["name"]
    (bundle / MANIFEST).write_text(json.dumps(value))
    images = sample_images(40)
    expected = decided(tmp_path / "new", images)
    old = read_manifest(bundle)
    engines = [engine_value(i, part, old.batch) for i, part in enumerate(old.segments)]
    assert [spec[1] for spec in engines[1]["tensors"]] == ["hidden_in", "hidden", "logits", "gate"]
    write_engine_files(bundle, old, engines)
    with opened(bundle) as (backend, _):
        done = Dispatcher(bundle, backend).run(images)
    np.testing.assert_array_equal(done.exits, expected[1])
    np.testing.assert_array_equal(done.logits, expected[0])


def test_the_host_waits_once_per_segment_and_nowhere_else(bundles):
    bundle = bundles(batch=(1, 1))
    with opened(bundle) as (backend, device):
        assert device.count("cudaEventRecord") == 0
        exits = Dispatcher(bundle, backend).run(sample_images(50)).exits
        assert device.count("cudaEventRecord") == (exits + 1).sum()
        assert device.count("cudaStreamSynchronize") == 0
        assert device.count("cudaDeviceSynchronize") == 1


@pytest.mark.parametrize(
    ("wait", "schedule", "asks"), [("spin", 1, True), ("yield", 2, True), ("block", 4, False)]
)
def test_every_way_to_wait_decides_alike(bundles, wait, schedule, asks):
    with opened(bundles(), wait=wait) as (backend, device):
        assert device.schedule == schedule
        assert_decides(backend, bundles(), sample_images(20))
        assert (device.count("cudaEventQuery") > 0) == asks
        assert (device.count("cudaEventSynchronize") > 0) != asks
        assert device.last_error == 0  # "not ready" is nobody's to find


def test_a_process_that_settled_how_to_wait_keeps_it(bundles, caplog):
    device = FakeDevice()
    device.fail_at = 6  # cudaSetDeviceFlags, behind what device_info asks
    with (
        caplog.at_level(logging.INFO, "compress"),
        opened(bundles(), device=device) as (backend, _),
    ):
        assert_decides(backend, bundles(), sample_images(8))
    assert "CUDA waits as it did before (cudaSetDeviceFlags failed" in caplog.text


def test_another_way_to_wait_is_refused(bundles):
    with pytest.raises(UserInputError, match="'sleep'; expected one of spin, yield, block"):
        TensorRTBackend(bundles(), read_manifest(bundles()), wait="sleep")


@pytest.mark.parametrize("era", ["10", "11"])
def test_a_graph_is_recorded_once_for_each_segment_and_number_of_images(bundles, era):
    bundle = bundles(era=era)
    with opened(bundle, era=era) as (backend, device):
        for _ in range(3):
            for count in (1, 3, 8):
                backend.load(sample_images(count))
                for segment in range(4):
                    backend.run(segment)
        assert device.count("cudaGraphInstantiateWithFlags") == 12
        assert device.count("execute_async_v3") == 24  # a first call and a capture each
        assert device.count("cudaGraphLaunch") == 24  # the second and third round
        assert device.count("context") == 4 + 12  # none that a graph was captured of is told more


def test_static_engines_are_recorded_without_further_contexts(bundles):
    bundle = bundles(batch=(1, 1), era="8.5")
    with opened(bundle, era="8.5") as (backend, device):
        assert_decides(backend, bundle, sample_images(60))
        assert device.count("context") == 4
        assert device.count("set_input_shape") == 0
        assert device.count("cudaGraphInstantiateWithFlags") == 4


def test_without_graphs_a_shape_is_set_only_where_it_changes(bundles):
    with opened(bundles(), use_graphs=False) as (backend, device):
        for count in (3, 3, 5, 5, 5, 3):
            backend.load(sample_images(count))
            backend.run(0)
        assert device.count("set_input_shape") == 3
        assert device.count("cudaStreamBeginCapture") == 0


@pytest.mark.parametrize(
    ("era", "batch", "uncapturable", "recorded"),
    [
        pytest.param("10", (1, 8), (1,), None, id="a segment cannot be captured"),
        pytest.param("10", (1, 1), (1,), 1, id="a segment of batch 1 cannot be captured"),
        pytest.param("8.5", (1, 8), (), 0, id="TensorRT 8.5 has one context for a profile"),
    ],
)
def test_what_cannot_be_recorded_runs_all_the_same_and_says_so_once(
    bundles, caplog, era, batch, uncapturable, recorded
):
    bundle = bundles(batch=batch, era=era)
    with (
        caplog.at_level(logging.INFO, "compress"),
        opened(bundle, era=era, uncapturable=uncapturable) as (backend, device),
    ):
        for seed in range(3):
            assert_decides(backend, bundle, sample_images(20, seed))
        made = device.count("cudaGraphInstantiateWithFlags")
    assert recorded is None or made == recorded
    told = [record for record in caplog.records if "without CUDA graphs" in record.message]
    assert [record.levelno for record in told] == [logging.INFO]


@pytest.mark.parametrize(
    ("most", "sizes"), [(6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32]), (300, [1, *[0] * 7])]
)
def test_every_number_of_images_needs_few_graphs_and_contexts(bundles, most, sizes):
    bundle = bundles(batch=(1, most), exits=1)
    with opened(bundle) as (backend, device):
        for count in range(1, most + 1, 1 + most // 40):
            assert_decides(backend, bundle, sample_images(count, seed=count))
        graphs = device.count("cudaGraphInstantiateWithFlags")
        assert len(sizes) < graphs <= 2 * len(sizes)
        assert device.count("context") == 2 + graphs


def test_rows_that_are_too_many_hold_images_that_are_sound(bundles):
    """A segment that looks places up must not find what was never written there."""
    bundle = bundles(UNET)
    with opened(bundle) as (backend, device):
        backend.load(sample_images(3))  # of which a segment runs four
        backend.run(0)
        image = device.bytes_at(backend._image, 8 * 128, "the test").view(np.float32)
        assert (image.reshape(8, -1)[3:] == 0).all()
        assert_decides(backend, bundle, sample_images(3))
        assert_decides(backend, bundle, sample_images(5))


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (6, [1, 2, 4, 6]),
        (8, [1, 2, 4, 8]),
        (128, [1, 2, 4, 8, 16, 32, 64, 128]),
        (1024, [1, 16, 32, 64, 128, 256, 512, 1024]),
        (1000, [1, 16, 32, 64, 128, 256, 512, 1000]),
    ],
)
def test_the_numbers_of_images_that_segments_run_with(most, sizes):
    assert row_sizes(most) == sizes
    assert [size_for(sizes, size) for size in sizes] == sizes
    assert all(size_for(sizes, rows) >= rows for rows in range(1, most + 1))


def test_images_may_be_loaded_before_the_last_ones_have_travelled(bundles):
    bundle = bundles()
    with opened(bundle) as (backend, _):
        backend.load(sample_images(8, seed=1))
        backend.load(sample_images(3, seed=2))
        gates = backend.run(0)
        first = read_manifest(bundle).segments[0]
        expected = given_by(0, first, {"image": sample_images(3, seed=2)})["gate"]
        np.testing.assert_array_equal(gates, expected.astype(np.float32))


def test_results_are_copies_that_outlive_the_next_call_and_the_backend(bundles):
    with opened(bundles()) as (backend, _):
        backend.load(sample_images(8))
        gates, logits = backend.run(0), backend.logits()
        kept = gates.copy(), logits.copy()
        backend.run(1)
    np.testing.assert_array_equal(gates, kept[0])
    np.testing.assert_array_equal(logits, kept[1])


def test_a_network_without_exits_is_one_engine(bundles):
    bundle = bundles(exits=0)
    with opened(bundle) as (backend, _):
        assert_decides(backend, bundle, sample_images(20))


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(sample_images(9), id="too many"),
        pytest.param(sample_images(1)[:0], id="none"),
        pytest.param(sample_images(2)[:, :, :1], id="of another size"),
        pytest.param(sample_images(2).astype(np.float64), id="of another type"),
    ],
)
def test_images_that_do_not_fit_are_refused(bundles, images):
    with opened(bundles()) as (backend, _), pytest.raises(UserInputError, match="expected"):
        backend.load(images)


def test_everything_goes_in_order_and_closing_twice_does_nothing_more(bundles):
    with opened(bundles()) as (backend, device):
        backend.load(sample_images(8))
        backend.run(0)
        start = len(device.log)
        backend.close()
        gc.collect()
        order = device.log[start:]
        ends = len(order)
        backend.close()
        assert len(device.log) == start + ends
    assert order[0] == "cudaStreamSynchronize"
    assert order[-2:] == ["cudaStreamDestroy", "cudaEventDestroy"]
    steps = ["cudaGraphExecDestroy", "Context10 gone", "cudaFree", "Engine10 gone", "Runtime gone"]
    for first, then in pairwise(steps):
        last_of_first = len(order) - 1 - order[::-1].index(first)
        assert last_of_first < order.index(then), (first, then)


def test_closing_waits_for_what_is_still_under_way(bundles):
    with opened(bundles()) as (backend, _):
        backend.load(sample_images(8))
        backend.run(0)
        backend.keep(np.array([3, 7]))  # and nobody waits: memory freed now would be a fault


def _error_of(bundle, call, refuses=()):
    """Open, run two batches and close with one failure; return the error, None without one."""
    device, error = FakeDevice(fail_at=call), None
    try:
        with opened(bundle, device=device, refuses=refuses) as (backend, _):
            for seed in range(2):
                assert_decides(backend, bundle, sample_images(8, seed))
    except CompressError as err:
        error = err.with_traceback(None)
        error.__context__ = error.__cause__ = None  # frames hold what they made
    assert device.faults == []
    assert device.leaks() == {}
    return error


def test_a_failure_of_any_single_cuda_call_leaves_nothing_behind(bundles):
    bundle, device = bundles(), FakeDevice()
    with opened(bundle, device=device) as (backend, _):
        for seed in range(2):
            assert_decides(backend, bundle, sample_images(8, seed))
    assert device.calls > 40
    errors = [_error_of(bundle, call) for call in range(1, device.calls + 1)]
    assert all(error is None or isinstance(error, ToolchainError) for error in errors)
    silent = [device.log for error in errors if error is None]
    graph_calls = ("BeginCapture", "EndCapture", "Instantiate", "GraphLaunch", "SetDeviceFlags")
    assert len(silent) <= sum(any(word in name for word in graph_calls) for name in device.log)


@pytest.mark.parametrize(
    ("refuses", "words"),
    [
        pytest.param(("context", 2), "no context for segment 2", id="a context"),
        pytest.param(("address", "hidden_0"), "address of hidden_0 of segment 0", id="an address"),
        pytest.param(("execute", 3), "to run of segment 3", id="to run"),
    ],
)
def test_what_tensorrt_refuses_is_one_sentence_and_leaves_nothing_behind(bundles, refuses, words):
    error = _error_of(bundles(), None, refuses={refuses})
    assert isinstance(error, ToolchainError)
    assert words in str(error)


def test_tensorrt_is_not_touched_without_a_gpu(bundles):
    device = FakeDevice(devices=-1)
    with pytest.raises(ToolchainError, match="no usable GPU"), opened(bundles(), device=device):
        pass
    assert device.faults == []
    assert set(device.log) == {"cudaGetDeviceCount"}


def test_without_a_cuda_library_tensorrt_is_not_even_imported(bundles, monkeypatch):
    def no_cuda():
        raise ToolchainError("no CUDA runtime library")

    monkeypatch.setattr(tensorrt_backend, "open_cuda", no_cuda)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda builder: pytest.fail("import"))
    with pytest.raises(ToolchainError, match="no CUDA runtime library"):
        TensorRTBackend(bundles(), read_manifest(bundles()))


def test_what_tensorrt_says_goes_to_our_log_and_not_to_stdout(bundles, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "compress"), opened(bundles()):
        pass
    assert "TensorRT: made a runtime" in caplog.text
    assert capfd.readouterr().out == ""


def test_after_the_first_images_nothing_more_is_allocated_or_kept(bundles):
    bundle = bundles(batch=(1, 1))
    with opened(bundle) as (backend, device):
        dispatcher, images = Dispatcher(bundle, backend), sample_images(50)
        dispatcher.run(images)
        before = _sizes(backend)
        del device.log[:]
        for _ in range(20):
            dispatcher.run(images)
        assert _sizes(backend) == before
        waiting = {"cudaEventRecord", "cudaEventQuery", "cudaGetLastError"}
        assert set(device.log) == {"cudaMemcpyAsync", "cudaGraphLaunch", *waiting}


def _sizes(backend):
    return {name: len(each) for name, each in vars(backend).items() if hasattr(each, "__len__")}
