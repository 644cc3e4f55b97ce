import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import ToolchainError, UserInputError
from compress.runtime.dispatcher import Dispatched
from compress.runtime.pictures import Reading
from compress.runtime.stream import (
    THREAD_NAMES,
    Item,
    Prediction,
    Tally,
    batched,
    find_pictures,
    predictions,
    prefetched,
)

WAIT = 10  # seconds after which a test that hangs has failed


class Reader:
    """Makes readings, and counts those that are under way or waiting to be asked for."""

    def __init__(self):
        self.started = self.consumed = 0
        self.lock = threading.Lock()
        self.most = 0

    def readings(self, outcomes):
        for number, outcome in enumerate(outcomes):
            yield Reading(str(number), lambda n=number, o=outcome: self.read(n, o))

    def read(self, number, outcome):
        with self.lock:
            self.started += 1
            self.most = max(self.most, self.started - self.consumed)
        if isinstance(outcome, Exception):
            raise outcome
        time.sleep(outcome)
        return np.full((1,), number, dtype=np.float32)

    def consume(self):
        with self.lock:
            self.consumed += 1


def left_behind():
    return [thread for thread in threading.enumerate() if THREAD_NAMES in thread.name]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.002, UserInputError("damaged")]), max_size=12),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_order_is_kept_whatever_a_reading_takes(outcomes, threads, ahead):
    reader = Reader()
    with prefetched(reader.readings(outcomes), threads=threads, ahead=ahead) as items:
        found = []
        for item in items:
            reader.consume()
            found.append(item)
    assert [item.name for item in found] == [str(number) for number in range(len(outcomes))]
    for number, (item, outcome) in enumerate(zip(found, outcomes, strict=True)):
        if isinstance(outcome, UserInputError):
            assert (item.image, item.error) == (None, "damaged")
        else:
            assert item.error is None
            assert item.image.tolist() == [number]
    assert reader.started == len(outcomes)
    assert reader.most <= ahead
    assert not left_behind()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_at_most_so_many_are_read_ahead(ahead):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield Reading(str(len(taken)), lambda: np.zeros(1, np.float32))

    with prefetched(endless(), threads=2, ahead=ahead) as items:
        assert taken == []  # nothing before the first is asked for
        for asked in range(1, 20):
            next(items)
            assert len(taken) <= asked - 1 + ahead


def test_images_are_read_while_the_consumer_works():
    second_is_read = threading.Event()

    def second():
        second_is_read.set()
        return np.zeros(1, np.float32)

    work = [Reading("0", lambda: np.zeros(1, np.float32)), Reading("1", second)]
    with prefetched(work, threads=1, ahead=2) as items:
        next(items)
        assert second_is_read.wait(WAIT)  # though it was not asked for


def test_two_threads_read_at_a_time():
    both = threading.Barrier(2)
    work = [Reading(str(n), lambda: np.full(1, both.wait(WAIT) >= 0)) for n in range(2)]
    with prefetched(work, threads=2, ahead=2) as items:
        assert [item.error for item in items] == [None, None]


@pytest.mark.parametrize("asked", [0, 1, 3])
@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt, BrokenPipeError])
def test_a_consumer_that_stops_leaves_no_thread(asked, error):
    reader = Reader()

    def consume():
        work = reader.readings([0.001] * 1000)
        with prefetched(work, threads=3, ahead=6) as items:
            for _ in range(asked):
                next(items)
            if error is not None:
                raise error

    if error is None:
        consume()
    else:
        with pytest.raises(error):
            consume()
    assert not left_behind()
    assert reader.started <= asked + 6


def test_what_waits_for_a_thread_when_the_consumer_stops_is_never_read():
    reader, under_way, release = Reader(), threading.Event(), threading.Event()

    def slow():
        under_way.set()
        release.wait(WAIT)
        return np.zeros(1, np.float32)

    work = [Reading("slow", slow), *reader.readings([0] * 5)]
    timer = threading.Timer(0.05, release.set)  # later than the block is left
    with prefetched(
        [Reading("first", lambda: np.zeros(1, np.float32)), *work], ahead=6, threads=1
    ) as items:
        next(items)
        assert under_way.wait(WAIT)
        timer.start()
    timer.join()
    assert reader.started == 0


@pytest.mark.parametrize("error", [ToolchainError("no Pillow"), ZeroDivisionError()])
def test_what_is_no_matter_of_one_image_ends_the_stream(error):
    reader = Reader()
    found = []
    with prefetched(reader.readings([0, 0, error, 0]), threads=2, ahead=4) as items:
        found += [next(items).name, next(items).name]
        with pytest.raises(type(error)):
            next(items)
    assert found == ["0", "1"]
    assert not left_behind()


def test_what_fails_in_the_list_of_readings_ends_the_stream():
    def broken():
        yield Reading("0", lambda: np.zeros(1, np.float32))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"), prefetched(broken()) as items:
        list(items)
    assert not left_behind()


@pytest.mark.parametrize(("threads", "ahead"), [(0, 1), (1, 0)])
def test_at_least_one_of_each(threads, ahead):
    with (
        pytest.raises(UserInputError, match="at least 1"),
        prefetched([], threads=threads, ahead=ahead),
    ):
        pass


@given(st.lists(st.integers(), max_size=20), st.integers(1, 6))
def test_batches_hold_all_in_order_and_only_the_last_is_smaller(items, size):
    groups = list(batched(items, size))
    assert [each for group in groups for each in group] == items
    assert all(len(group) == size for group in groups[:-1])
    assert all(0 < len(group) <= size for group in groups)


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_folders_are_searched_to_any_depth_and_sorted(tmp_path):
    wanted = ["a.png", "b/1.JPG", "b/c/2.npy", "b/c/3.tiff", "d.webp"]
    left_out = ["notes.txt", ".a.png", "b/.hidden/a.png", "__MACOSX/a.png", "png"]
    root = make(tmp_path / "pictures", *reversed(wanted), *left_out)
    assert find_pictures([root]) == [root / name for name in wanted]
    other = make(tmp_path, "z.bin") / "z.bin"  # named, so it is taken at its word
    assert find_pictures([other, root, other])[::6] == [other, other]


def test_links_in_a_circle_are_not_followed(tmp_path):
    root = make(tmp_path, "a.png")
    (root / "again").symlink_to(root)
    assert find_pictures([root]) == [root / "a.png"]


def test_paths_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(UserInputError, match=r"image .*nowhere does not exist"):
        find_pictures([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserInputError, match=r"folder .*empty holds no image; expected .*\.bmp"):
        find_pictures([tmp_path / "empty"])


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", top))
        return []

    monkeypatch.setattr("compress.runtime.stream.os.walk", walk)
    with pytest.raises(UserInputError, match=r"cannot be listed \(Permission denied\)"):
        find_pictures([tmp_path])


class FakeDispatcher:
    """The image is its logits; it leaves at the exit that its third value says."""

    def __init__(self, places=("layer1.0", "layer2.4", None)):
        self.manifest = SimpleNamespace(
            classes=("cat", "dog"),
            segments=[SimpleNamespace(at=each) for each in places],
            thresholds=[0.5] * (len(places) - 1),
        )
        self.batches = []

    def run(self, images, *, times=False):
        self.batches.append(len(images))
        logits, exits = images[:, :2], images[:, 2].astype(np.int64)
        ms = [(0, len(images), 4.0), (1, 1, 2.0), (0, 1, 1.0), (2, 1, 8.0)]
        return Dispatched(logits, logits.argmax(axis=1), exits, ms if times else None)


def item(name, *values):
    return Item(name, np.array(values, dtype=np.float32), None)


def test_predictions_in_order_with_the_errors_in_their_places():
    dispatcher = FakeDispatcher()
    items = [
        item("a", 2, 1, 0),
        Item("b", None, "damaged"),
        item("c", 0, 0.5, 2),
        item("d", 7, 7, 1),
        Item("e", None, "gone"),
    ]
    found = list(predictions(dispatcher, items, batch=2))
    assert [each.image for each in found] == ["a", "b", "c", "d", "e"]
    assert [each.error for each in found] == [None, "damaged", None, None, "gone"]
    assert dispatcher.batches == [1, 2]  # groups [a b], [c d], [e]: nothing is run for the last
    a, _, c, d, _ = found
    assert (a.class_name, a.class_index, a.exit_index, a.exit_at) == ("cat", 0, 0, "layer1.0")
    assert (c.class_name, c.class_index, c.exit_index, c.exit_at) == ("dog", 1, 2, None)
    assert a.confidence == pytest.approx(1 / (1 + np.exp(-1)))
    assert d.confidence == pytest.approx(0.5)
    assert a.latency_ms > 0
    assert c.latency_ms == d.latency_ms
    assert a.segment_ms is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12), st.integers(1, 5))
def test_every_image_has_one_prediction_at_any_batch(wanted, batch):
    items = [
        item(str(i), 0, 1, exit_index) if good else Item(str(i), None, "damaged")
        for i, (exit_index, good) in enumerate(wanted)
    ]
    dispatcher = FakeDispatcher()
    found = list(predictions(dispatcher, items, batch=batch))
    assert [each.image for each in found] == [each.name for each in items]
    assert [each.exit_index for each in found] == [e if good else None for e, good in wanted]
    assert sum(dispatcher.batches) == sum(good for _, good in wanted)
    assert all(0 < size <= batch for size in dispatcher.batches)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error_of_that_image(bad):
    found = list(predictions(FakeDispatcher(), [item("a", bad, 1, 0), item("b", 1, 0, 0)], batch=2))
    assert found[0] == Prediction("a", error="the network gave logits that are not finite")
    assert found[1].class_name == "cat"


def test_huge_logits_have_a_confidence():
    (found,) = predictions(FakeDispatcher(), [item("a", 3e38, -3e38, 0)])
    assert found.confidence == 1.0


def test_times_are_those_up_to_the_exit():
    found = list(
        predictions(FakeDispatcher(), [item("a", 0, 1, 0), item("b", 0, 1, 1)], batch=2, times=True)
    )
    assert [each.segment_ms for each in found] == [[5.0], [5.0, 2.0]]
    assert found[1].to_dict()["segment_ms"] == [5.0, 2.0]


def test_the_final_head_stands_behind_no_module():
    (found,) = predictions(FakeDispatcher(places=(None,)), [item("a", 0, 1, 0)])
    assert found.exit_at is None
    assert ", exit 0, " in found.to_text()


def test_a_prediction_as_json_and_as_text():
    found = Prediction("a.png", "cat", 3, 0.91234, 1, "layer2.4", 3.456)
    assert found.to_dict() == {
        "image": "a.png",
        "class": "cat",
        "class_index": 3,
        "confidence": 0.91234,
        "exit": 1,
        "exit_at": "layer2.4",
        "latency_ms": 3.456,
    }
    assert found.to_text() == "a.png: cat 0.9123, exit 1 (layer2.4), 3.46 ms"
    assert Prediction("a", error="gone").to_dict() == {"image": "a", "error": "gone"}


def test_names_cannot_command_a_terminal():
    found = Prediction("a\x1b[2J\n\udcff.png", "\x07", 0, 1.0, 0, "\x1b[A", 1.0)
    text = found.to_text()
    assert text.isprintable()
    text.encode()
    assert r"a\x1b[2J\n\udcff.png: \x07" in text


def test_the_tally():
    tally = Tally(FakeDispatcher().manifest)
    empty = tally.to_dict()
    assert (empty["images"], empty["latency_ms_p99"]) == (0, None)
    assert empty["exit_rates"] == [None, None, None]
    assert tally.to_text() == "0 images, 0 with errors"
    for ms in range(101):
        exit_index = 0 if ms < 50 else 2
        tally.add(Prediction("a", "cat", 0, 1.0, exit_index, 1, ms, [1.0, 2.0, 3.0][: ms % 3 + 1]))
    tally.add(Prediction("b", error="gone"))
    value = tally.to_dict()
    assert (value["images"], value["errors"]) == (102, 1)
    assert value["exit_rates"] == [50 / 101, 0, 51 / 101]
    assert (value["latency_ms_median"], value["latency_ms_p99"]) == (50, 99)
    assert value["segment_ms_median"] == [1, 2, 3]
    assert value["images_per_second"] > 0
    assert "exits 0: 49.5 %, 1: 0.0 %, 2: 50.5 %" in tally.to_text()
    assert "latency 50.00 ms median, 99.00 ms 99th percentile" in tally.to_text()


def test_a_segment_that_never_ran_has_no_time():
    tally = Tally(FakeDispatcher().manifest)
    tally.add(Prediction("a", "cat", 0, 1.0, 0, 1, 5.0, [4.0]))
    assert tally.to_dict()["segment_ms_median"] == [4, None, None]
    assert "segments 4.00, -, - ms median" in tally.to_text()
