"""Benchmarks: whose turn it is, figures by closed forms, replayed power, what does not fit."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.benchmark import energy, job, memory
from compress.benchmark.job import BenchmarkJob, SubjectSpec, benchmark
from compress.benchmark.kinds import CheckpointSubject
from compress.benchmark.lineup import open_subject, subject_names
from compress.benchmark.memory import peak_memory, read_peak
from compress.benchmark.profiles import HOST_LOOP, operator_rows
from compress.benchmark.subject import OpenOptions, Subject
from compress.benchmark.timing import interleaved, spread
from compress.checkpoint import save
from compress.data.image_data import ImageData, Preprocessing, Split
from compress.data.spec import load_data
from compress.errors import ToolchainError, UserInputError
from compress.export.export_job import ExportJob, export_checkpoint
from compress.measure.op_profile import Operation, OpProfile
from compress.measure.prediction import predict
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.vgg import VGG
from compress.opened import Opening
from compress.runtime.device_profile import read_device_profile
from compress.runtime.power.jetson import find_jetson
from compress.runtime.power.sampling import PowerSource, Sample
from compress.runtime.power.trace import Phase, Trace, write_trace
from tests.exit_networks import KINDS, residual
from tests.export.triton_bundles import THRESHOLDS, images_with, write_bundle
from tests.runtime.power_trees import orin_nano

SIDE, BARS = 16, (0.6, 0.7)


class Clock:
    """Nanoseconds that pass only when something is run."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def spend(self, ms: float) -> None:
        self.now += round(ms * 1e6)


class Pictures:
    """Ten pictures that take 2 ms each to read; picture i is i everywhere."""

    lazy, shape = False, (3, SIDE, SIDE)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def read(self, positions):
        self.clock.spend(2 * len(positions))
        return positions.to(torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone()


def pictures(clock: Clock, classes: int = 10) -> ImageData:
    numbers = torch.arange(10)
    splits = {name: Split(Pictures(clock), numbers, numbers) for name in ("train", "test")}
    recipe = Preprocessing(
        image_size=SIDE,
        resize="pillow-bicubic",
        resize_size=SIDE,
        mean=(0,) * 3,
        std=(1 / 255,) * 3,
    )
    names = tuple(map(str, range(classes)))
    return ImageData(name="ten", classes=names, splits=splits, preprocessing=recipe, sha256="0")


class Fake(Subject):
    """Leaves at exit 0 where the picture's number is below `early`; says class 0, always."""

    kind, network, runtime, sha256, classes = "checkpoint", "fake_net", "nothing", "f" * 64, 10
    image_shape = (3, SIDE, SIDE)

    def __init__(self, name, clock, turns, *, early=0, ms=(1.0, 1.0), **others):
        self.name, self.clock, self.turns, self.early, self.ms = name, clock, turns, early, ms
        self.thresholds = (0.5,) if early else ()
        self.positions = (3, 11) if early else (11,)
        self.closed = False
        for key, value in others.items():
            setattr(self, key, value)

    def run(self, images):
        numbers = images[:, 0, 0, 0].round().int().tolist()
        leaves = [0 if number < self.early else 1 for number in numbers]
        self.turns.append((self.name, *numbers))
        self.clock.spend(sum(self.ms[k] for k in leaves))
        return [0] * len(numbers), leaves if self.early else [0] * len(numbers)

    def profile(self, images):
        rows = (Operation(name="all", hits=len(images), total_ms=3.0 * len(images)),)
        return OpProfile(
            network="fake_net", device="none", threads=1, images=len(images), operations=rows
        )

    def close(self):
        self.closed = True


class Stage:
    """A clock, subjects that move it, and the order in which they ran."""

    def __init__(self, monkeypatch) -> None:
        self.clock, self.turns, self.fakes = Clock(), [], {}
        monkeypatch.setattr(job, "open_subject", lambda spec, name, options: self.fakes[name])

    def add(self, name, **options) -> None:
        self.fakes[name] = Fake(name, self.clock, self.turns, **options)

    def run(self, *, source=None, **options):
        settings = {"seconds": 0.5, "images": 10, "memory": False, "energy": "none"}
        data = options.pop("data", None) or pictures(self.clock)
        job = BenchmarkJob(
            subjects=tuple(SubjectSpec(path=Path(name)) for name in self.fakes),
            data=data,
            progress=False,
            **{**settings, **options},
        )
        return benchmark(job, clock=self.clock, source=source)


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


@pytest.fixture
def two(stage):
    """A baseline of 26.75 ms, and one that takes 10 ms for 3 of 10 images and 20 for the others."""
    stage.add("whole", ms=(26.75, 26.75))
    stage.add("early", early=3, ms=(10.0, 20.0))
    return stage


# Turns


def test_networks_take_turns_on_every_image(two):
    two.run()
    timed = two.turns[20:]  # behind the pass that tells where images leave
    assert timed[:6] == [
        ("whole", 0), ("early", 0), ("whole", 1), ("early", 1), ("whole", 2), ("early", 2),
    ]  # fmt: skip
    assert [name for name, _ in timed] == ["whole", "early"] * (len(timed) // 2)
    assert len(set(Counter(timed).values())) == 1  # every image as often as any other
    assert all(fake.closed for fake in two.fakes.values())


def test_as_many_whole_passes_as_fit_into_the_time(stage):
    clock, order = stage.clock, []

    def call(name, ms):
        return lambda: (order.append(name), clock.spend(ms))

    calls = {"a": [call("a0", 1), call("a1", 3)], "b": [call("b0", 6), call("b1", 6)]}
    found = interleaved(calls, seconds=0.024, clock=clock)  # a pass takes 16 of 2 * 24 ms: 3 fit
    assert order == ["a0", "b0", "a1", "b1"] * 4  # the first of them is not timed
    assert found["a"].iterations == found["b"].iterations == 6
    assert found["a"].mean_ms == pytest.approx(2)
    assert (found["b"].median_ms, found["b"].p99_ms) == (6, 6)


def test_one_pass_is_timed_however_long_it_takes(stage):
    found = interleaved({"a": [lambda: stage.clock.spend(900)]}, seconds=0.1, clock=stage.clock)
    assert (found["a"].iterations, found["a"].median_ms) == (1, 900)


@given(st.integers(1, 500), st.integers(1, 500))
def test_images_are_spread_evenly(count, wanted):
    places = spread(count, wanted).tolist()
    assert len(places) == min(count, wanted)
    assert places[0] == 0
    steps = {b - a for a, b in pairwise(places)}
    assert all(step >= 1 for step in steps)
    assert len(steps) <= 2
    assert places[-1] < count


# Figures


def test_figures_by_hand(two):
    report = two.run()
    told = report.to_dict()["latency"]
    mean = (3 * 10 + 7 * 20) / 10
    assert told["early"]["mean"] == pytest.approx(mean)
    assert told["early"]["median"] == 20
    assert told["early"]["p10"] == 10
    assert told["early"]["percent_of_first"] == pytest.approx(100 * mean / 26.75)
    assert told["whole"]["percent_of_first"] == 100
    assert report.data_time.mean_ms == pytest.approx(2)
    assert told["early"]["elapsed_time_ms"] == pytest.approx(19)
    assert told["early"]["fps"] == pytest.approx(1000 / 19)
    assert report.log_lines("early").splitlines() == [
        f"FPS: {told['early']['fps']}",
        f"elapsed_time_ms: {told['early']['elapsed_time_ms']}",
        f"Avg Forward Time per Image: {told['early']['mean']} ms",
    ]
    subjects = report.to_dict()["subjects"]
    assert subjects["early"]["leaving"] == [3, 7]
    assert subjects["early"]["exit_rates"] == [0.3, 0.7]
    assert subjects["whole"]["leaving"] == [10]
    assert subjects["whole"]["correct"] == 1  # picture 0 alone is of class 0


def test_batches_are_full_ones(two):
    report = two.run(batches=(4,))
    told = report.to_dict()["latency"]["early"]["batches"]["4"]
    batches = {turn for turn in two.turns if len(turn) == 5 and turn[0] == "early"}
    assert batches == {("early", 0, 1, 2, 3), ("early", 4, 5, 6, 7)}
    assert told["mean"] == pytest.approx((3 * 10 + 20 + 4 * 20) / 2)
    assert told["per_image_ms"] == pytest.approx(130 / 8)
    assert told["images_per_second"] == pytest.approx(8 / 0.130)
    assert "early, batches of 4: " in report.to_text()


def test_the_report_is_json_with_the_keys_that_are_promised(two):
    told = json.loads(json.dumps(two.run().to_dict(), allow_nan=False))
    assert told["schema"] == "compress.benchmark/1"
    assert list(told["latency"]) == ["whole", "early"]
    (row,) = told["profiles"]["whole"]["rows"]
    assert row == {"name": "all", "hits": 10, "total_ms": 30, "per_hit_ms": 3, "share": 1}
    assert told["energy"] is None
    assert told["energy_reason"] == "energy was not asked for"
    assert told["versions"]["torch"]
    assert told["hardware"]["cpu"]
    assert told["memory"] == {"whole": None, "early": None}
    assert told["memory_reason"] == "peak memory was not asked for"


def test_text_shows_table_log_lines_and_profiles(two):
    text = two.run().to_text()
    assert "10 test images of ten, 16x16, one by one, the networks in turn" in text
    assert "Avg Forward Time per Image: 26.75 ms" in text
    assert "leaving at each exit, the final head last: 30.0, 70.0 % (threshold 0.5)" in text
    assert "Operation" in text
    assert "energy: energy was not asked for" in text


# Energy


def constant(milliwatts: float, start: float = 0.0) -> tuple[Sample, ...]:
    return tuple(Sample(start + t, {"VDD_IN": milliwatts}) for t in (0.0, 5.0, 10.0))


def trace_of(*phases: tuple[str, float]) -> Trace:
    found = [Phase(name, constant(mw, 100.0 * i)) for i, (name, mw) in enumerate(phases)]
    return Trace("jetson-ina3221", "power", ("VDD_IN",), ("VDD_IN",), tuple(found), {"m": "15W"})


def test_a_replayed_trace_gives_the_energy_of_the_logs(two, tmp_path):
    """5.2 W net at 26.75 ms are the 139.10 mJ of the log's baseline."""
    file = tmp_path / "trace.jsonl"
    write_trace(trace_of(("idle", 8000), ("active", 13200), ("active", 12000)), file)
    report = two.run(power_trace=file)
    told = report.to_dict()["energy"]
    assert told["whole"]["per_image_mj"] == pytest.approx(5.2 * 26.75, rel=1e-12)
    assert told["whole"]["cell"] == "139.10mJ/0%"
    assert told["early"]["per_image_mj"] == pytest.approx(4.0 * 17, rel=1e-12)
    assert told["early"]["saving_percent"] == pytest.approx(100 * (1 - 68 / 139.1))
    assert told["early"]["cell"] == "68.00mJ/51.11%"
    assert told["early"]["reading"]["state"] == {"m": "15W"}
    assert report.to_dict()["energy_reason"] is None
    assert "energy of an image on whole: 139.10mJ/0%" in report.to_text()


@pytest.mark.parametrize(
    "phases",
    [
        pytest.param([("idle", 1.0), ("active", 2.0)], id="one network"),
        pytest.param([("active", 2.0), ("active", 2.0)], id="no idle"),
        pytest.param([("active", 2.0), ("idle", 1.0), ("active", 2.0)], id="before idle"),
    ],
)
def test_a_trace_with_too_few_phases_is_refused_before_anything_runs(two, tmp_path, phases):
    write_trace(trace_of(*phases), tmp_path / "t.jsonl")
    with pytest.raises(UserInputError, match="expected idle, then one active for each of the 2"):
        two.run(power_trace=tmp_path / "t.jsonl")
    assert two.turns == []


def test_without_a_sensor_there_is_a_reason_and_no_figure(two, monkeypatch):
    def nothing(*_, **__):
        raise ToolchainError("energy cannot be measured on this machine (no sensor)")

    monkeypatch.setattr(energy, "find_source", nothing)
    report = two.run(energy="auto")
    assert report.to_dict()["energy"] is None
    assert "no sensor" in report.to_dict()["energy_reason"]
    assert "mJ" not in report.to_text()
    for asked in ({"energy": "rapl"}, {"energy": "auto", "save_power_trace": Path("t")}):
        with pytest.raises(ToolchainError, match="no sensor"):
            two.run(**asked)


def test_rails_of_a_jetson_are_read_recorded_and_replayed_to_the_same_energy(two, tmp_path):
    orin_nano(tmp_path / "tree")
    file = tmp_path / "trace.jsonl"
    options = {"energy": "jetson", "idle_seconds": 0.01}
    source = find_jetson(tmp_path / "tree")
    first = two.run(source=source, save_power_trace=file, **options)
    reading = first.energy["whole"].reading
    assert reading.rails == pytest.approx({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5})
    assert reading.total_of == ("VDD_IN",)
    assert first.saved == {"power trace": str(file)}
    again = two.run(power_trace=file, **options).energy
    assert again["early"].per_image_mj == first.energy["early"].per_image_mj
    assert again["early"].reading.energy_mj == first.energy["early"].reading.energy_mj


def test_a_baseline_that_takes_no_net_energy_has_no_saving(two, tmp_path):
    write_trace(trace_of(("idle", 8000), ("active", 8000), ("active", 9000)), tmp_path / "t.jsonl")
    report = two.run(power_trace=tmp_path / "t.jsonl")
    told = report.to_dict()["energy"]["early"]
    assert (told["saving_percent"], told["cell"]) == (None, None)
    assert told["per_image_mj"] == pytest.approx(17)
    assert "17.00mJ (no saving: the first is not above 0)" in report.to_text()


class Broken(PowerSource):
    name, rails, total_of = "broken", ("a",), ("a",)

    def read(self):
        raise OSError("gone")


def test_a_sensor_that_fails_is_a_reason_unless_it_was_asked_for(two):
    report = two.run(energy="auto", source=Broken(), idle_seconds=0.01)
    assert "broken cannot be read (gone)" in report.energy_reason
    with pytest.raises(ToolchainError, match="gone"):
        two.run(energy="rapl", source=Broken(), idle_seconds=0.01)


# Prediction


def test_a_prediction_takes_the_exit_rates_of_this_run(two):
    report = two.run(predict="jetson_log_resisc45")
    profile = read_device_profile("jetson_log_resisc45")
    wanted = predict(profile, [3, 7], positions=(3, 11))
    assert report.results["early"].prediction == wanted
    assert report.results["whole"].prediction == predict(profile, [1], positions=(11,))
    assert report.to_dict()["predictions"]["early"]["latency_ms"] == wanted.latency_ms
    note = "note: that profile was measured on gfnet_dynn_12_384, not on this network"
    assert note in report.to_text()


def test_a_profile_that_fits_none_is_refused_before_anything_runs(two):
    for fake in two.fakes.values():
        fake.positions = None
    with pytest.raises(UserInputError, match="by operations"):
        two.run(predict="jetson_log_resisc45")
    assert two.turns == []


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"image_shape": (3, 32, 32)}, "of 16x16 and early of 32x32", id="size"),
        pytest.param({"classes": 7}, "whole has 10 classes and early 7", id="classes"),
    ],
)
def test_networks_that_differ(two, change, message):
    for key, value in change.items():
        setattr(two.fakes["early"], key, value)
    with pytest.raises(UserInputError, match=message):
        two.run()


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 24)])
def test_images_that_no_data_give(stage, shape):
    stage.add("odd", image_shape=shape)
    with pytest.raises(UserInputError, match="but the data ten give 3x16x16; load"):
        stage.run()


def test_data_of_other_classes_or_size(stage):
    stage.add("one")
    with pytest.raises(UserInputError, match="10 classes, but the data ten have 3"):
        stage.run(data=pictures(stage.clock, classes=3))
    stage.fakes["one"].image_shape = (3, 8, 8)
    with pytest.raises(UserInputError, match="takes images of 8x8, but the data ten give 3x16x16"):
        stage.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "--images is 0"),
        ({"images": 4, "batches": (8,)}, "--batch is 8 with --images 4"),
        ({"images": 64, "batches": (32,)}, "there are 10 images in the test split"),
        ({"batches": (8,)}, "early takes at most 4 images at a time; export it with --batch 1:8"),
        ({"seconds": 0}, "--seconds is 0"),
        ({"idle_seconds": float("nan")}, "--idle-seconds is nan"),
        ({"energy": "magic"}, "'magic'; expected one of auto, none, jetson"),
        ({"save_power_trace": Path("t.jsonl")}, "where no sensor is read"),
        ({"operators": True}, "--profile-operators was given without a bundle"),
        ({"threads": 0}, "number of threads is 0"),
        ({"predict": "no_such_board"}, "no_such_board does not exist; expected a file"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(two, options, message):
    two.fakes["early"].max_batch = 4
    with pytest.raises(UserInputError, match=message):
        two.run(**options)
    assert two.turns == []


def test_a_profile_is_saved_of_exactly_one_network_with_exits(stage, tmp_path):
    stage.add("a")
    with pytest.raises(UserInputError, match="0 networks with early exits"):
        stage.run(save_profile=tmp_path / "p.json")
    stage.add("b", early=1)
    stage.add("c", early=1)
    with pytest.raises(UserInputError, match="2 networks with early exits"):
        stage.run(save_profile=tmp_path / "p.json")
    (tmp_path / "p.json").touch()
    with pytest.raises(UserInputError, match="exists"):
        stage.run(save_profile=tmp_path / "p.json")


def test_names_are_all_different():
    def names(*paths, name=None):
        return subject_names([SubjectSpec(path=Path(path), name=name) for path in paths])

    assert names("a/x.pth", "b/y.pth") == ["x.pth", "y.pth"]
    assert names("a/x.pth", "b/x.pth", "y.pth") == ["a/x.pth", "b/x.pth", "y.pth"]
    assert names("x.pth", "x.pth", "x.pth") == ["x.pth", "x.pth (2)", "x.pth (3)"]
    assert names("a/x.pth", name="baseline") == ["baseline"]


# Real networks


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=SIDE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    """A small network whose images leave at all of its exits."""
    torch.manual_seed(0)
    model = GFNetDynn(
        image_size=SIDE, patch_size=4, width=16, depth=3, num_classes=10, exits=[0, 1]
    ).eval()
    images = digits.normalize(digits.splits["test"].images(torch.arange(64)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for gate, logits, bar in zip(
            model.gates, model.forward_all(images)[1].T, BARS, strict=True
        ):
            gate.linear.bias.add_(torch.logit(torch.tensor(bar)) - logits.median() - 1e-3)
    path = tmp_path_factory.mktemp("checkpoint") / "dynn.pth"
    recipe = digits.preprocessing.to_dict()
    save(model, path, meta={"data": {"name": "digits"}, "preprocessing": recipe})
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    job = ExportJob(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("bundle") / "dynn.bundle",
        split_exits=True,
        thresholds=BARS,
        target="onnxruntime",
        max_batch=8,
        progress=False,
    )
    return export_checkpoint(job).bundle


def small_job(*specs: SubjectSpec, **options) -> BenchmarkJob:
    settings = {"images": 20, "seconds": 0.01, "memory": False, "energy": "none", "threads": 1}
    return BenchmarkJob(subjects=specs, data="digits", progress=False, **{**settings, **options})


@pytest.mark.slow
def test_checkpoint_and_bundle_decide_alike_and_segments_add_up(checkpoint, bundle):
    specs = (SubjectSpec(path=checkpoint, thresholds=BARS), SubjectSpec(path=bundle))
    report = benchmark(small_job(*specs, batches=(8,), operators=True))
    torch_side, bundle_side = report.results["dynn.pth"], report.results["dynn.bundle"]
    leaving = bundle_side.leaving
    assert torch_side.leaving == leaving
    assert all(leaving)  # images leave everywhere, or the test shows little
    assert bundle_side.about["positions"] == torch_side.about["positions"] == [0, 1, 2]
    profile = bundle_side.profile
    reached = [20, leaving[1] + leaving[2], leaving[2]]
    hits = [row.hits for row in profile.operations]
    assert hits == [3 * count for count in (*reached, 20)]  # three passes, and the host loop
    assert [row.name for row in profile.operations] == [
        "segment 0 (to block 0)", "segment 1 (to block 1)", "segment 2 (to final head)", HOST_LOOP,
    ]  # fmt: skip
    assert sum(map(profile.share, profile.operations)) == pytest.approx(1)
    operators = {row.name: row.hits for row in bundle_side.operators.operations}
    assert operators["Conv"] == 20  # the patch embedding, once an image
    assert torch_side.operators is None
    assert report.to_dict()["operators"].keys() == {"dynn.bundle"}


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_batch_leaves_as_its_images_do_one_by_one(kind, tmp_path, digits):
    save(KINDS[kind](), tmp_path / "dynn.pth")
    spec = SubjectSpec(path=tmp_path / "dynn.pth", thresholds=(0.7, 0.6, 0.5))
    options = OpenOptions(threads=1, opening=Opening(image_size=SIDE))
    subject = CheckpointSubject(spec, "x", options)
    images = digits.normalize(digits.splits["test"].images(torch.arange(40)))
    classes, exits = subject.run(images)
    single = [subject.run(image) for image in images.split(1)]
    assert exits == [number for _, (number,) in single]
    assert set(exits) == {0, 1, 2, 3}
    assert classes == [label for (label,), _ in single]
    with torch.inference_mode():
        logits, again = subject.model.forward_early_batch(images, (0.7, 0.6, 0.5))
        early = [subject.model.forward_early(image, (0.7, 0.6, 0.5)) for image in images.split(1)]
    assert again == exits
    torch.testing.assert_close(logits, torch.cat([each for each, _ in early]), atol=1e-4, rtol=1e-4)
    everyone, at_once = subject.model.forward_early_batch(images, 0.0)
    assert (at_once, len(everyone)) == ([0] * 40, 40)


@pytest.mark.parametrize("head", ["linear", "conv:8"])
def test_a_network_with_exits_behind_modules_is_benchmarked(head, tmp_path):
    save(residual(head), tmp_path / "resnet.pth")
    spec = SubjectSpec(
        path=tmp_path / "resnet.pth", thresholds=(0.6, 0.6), exits=("layer1.1", "layer2.1"),
        opening=Opening(image_size=SIDE),
    )  # fmt: skip
    file = tmp_path / "here.json"
    report = benchmark(small_job(spec, save_profile=file, batches=(8,)))
    found = report.results["resnet.pth"]
    assert found.about["positions"] == ["layer1.1", "layer2.1", "final head"]
    assert sum(found.leaving) == 20
    assert found.profile.leaving == found.leaving
    profile = read_device_profile(file)
    assert profile.exits == ("layer1.1", "layer2.1")
    again = benchmark(small_job(spec, predict=file))
    assert "resnet.pth" in again.to_dict()["predictions"]
    with pytest.raises(UserInputError, match="--exits is layer9; expected some of layer1"):
        benchmark(small_job(replace(spec, exits=("layer9",))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_a_saved_profile_predicts(checkpoint, bundle, tmp_path, kind):
    path = {"bundle": bundle, "checkpoint": checkpoint}[kind]
    file = tmp_path / "here.json"
    spec = SubjectSpec(path=path, thresholds=0.0)  # all leave at once, all segments are timed
    report = benchmark(small_job(spec, save_profile=file, profile=False))
    assert report.saved == {"device profile": str(file)}
    profile = read_device_profile(file)
    assert len(profile.segments_ms) == (3 if kind == "bundle" else 0)
    assert min([*profile.segments_ms, *(each.ms for each in profile.operations)]) > 0
    assert profile.net_power_w is None
    again = benchmark(small_job(SubjectSpec(path=path, thresholds=0.0), predict=file))
    (told,) = again.to_dict()["predictions"].values()
    if kind == "bundle":
        assert told["forward_ms"] == pytest.approx(profile.segments_ms[0])
    assert "note: that profile" not in again.to_text()


def test_exits_without_a_threshold_are_refused(checkpoint):
    with pytest.raises(UserInputError, match="early exits, and no threshold is given"):
        benchmark(small_job(SubjectSpec(path=checkpoint)))


def test_a_subset_of_the_exits_is_deployed(checkpoint):
    spec = SubjectSpec(path=checkpoint, thresholds=[0.7], exits=[1])
    subject = open_subject(spec, "x", OpenOptions(threads=1))
    assert (subject.thresholds, subject.positions) == ((0.7,), (1, 2))


def test_thresholds_of_a_bundle_are_its_own_or_those_given(tmp_path):
    write_bundle(tmp_path)
    options = OpenOptions(threads=1)
    for asked, wanted in ((None, THRESHOLDS), ([0.9], (0.9, 0.9)), ((0.1, 0.2), (0.1, 0.2))):
        subject = open_subject(SubjectSpec(path=tmp_path, thresholds=asked), "x", options)
        assert subject.thresholds == wanted
        subject.close()
    with pytest.raises(UserInputError, match="3 thresholds for 2 exits"):
        open_subject(SubjectSpec(path=tmp_path, thresholds=(0, 0, 0)), "x", options)


def test_segments_and_operators_run_for_the_images_that_reach_them(tmp_path):
    write_bundle(tmp_path)
    subject = open_subject(SubjectSpec(path=tmp_path), "x", OpenOptions(threads=1))
    images = torch.from_numpy(images_with([[1, 0], [0, 0], [0, 1], [0, 0], [1, 1], [0, 1]]))
    assert subject.run(images)[1] == [0, 2, 1, 2, 0, 1]
    profile = subject.profile(images)
    assert [row.hits for row in profile.operations] == [3 * 6, 3 * 4, 3 * 2, 3 * 6]
    assert profile.operations[-1].name == HOST_LOOP
    assert profile.leaving == (6, 6, 6)
    assert profile.images == 18
    operators = subject.operators(images)
    hits = {row.name: row.hits for row in operators.operations}
    assert hits["Reshape"] == 6  # of the image alone
    assert hits["MatMul"] == 6 + 4 + 2
    assert sum(map(operators.share, operators.operations)) == pytest.approx(1)
    never = subject.device_profile(images[:1], name="n", device="d", net_power_w=None)
    assert len(never.segments_ms) == 3  # the image leaves at once, yet all are timed
    assert min(never.segments_ms) > 0
    subject.close()


def test_a_network_without_exits_ignores_thresholds(tmp_path, digits):
    path = tmp_path / "vgg.pth"
    save(VGG(widths=[[8], [8]], hidden=[16], pooled=1, num_classes=10), path)
    spec = SubjectSpec(path=path, thresholds=0.8)
    report = benchmark(small_job(spec, opening=Opening(image_size=SIDE)))
    assert report.results["vgg.pth"].leaving == (20,)
    assert report.results["vgg.pth"].about["thresholds"] == []


# Operators and memory


def test_operators_of_a_trace(tmp_path):
    def event(name, cat="Node", dur=1500):
        return {"cat": cat, "name": name, "dur": dur, "args": {"op_name": "Conv"}}

    events = [event("a_kernel_time"), event("a_fence_before"), event("model_run", "Session")]
    (tmp_path / "t.json").write_text(json.dumps(events))
    assert list(operator_rows(tmp_path / "t.json")) == [("Conv", 1, 1.5)]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"cat": "Node", "name": "x_kernel_time"}]'])
def test_a_damaged_trace_of_operators(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ToolchainError, match="--profile-operators"):
        list(operator_rows(tmp_path / "t.json"))


def test_resident_set_of_a_status():
    text = "Name:\tpython\nVmHWM:\t   3072 kB\nVmRSS:\t   1024 kB\nRssAnon:\t 1 kB\n"
    assert read_peak(text) == {"VmHWM": 3.0, "VmRSS": 1.0}


@pytest.mark.slow
def test_memory_of_a_network_is_at_least_that_of_its_weights(tmp_path):
    model = VGG(widths=[[512] * 5], hidden=[16], pooled=1, num_classes=10)  # 37.8 MB
    save(model, tmp_path / "vgg.pth")
    weights_mib = sum(p.numel() * 4 for p in model.parameters()) / (1 << 20)
    spec = SubjectSpec(path=tmp_path / "vgg.pth")
    found = peak_memory(
        spec, OpenOptions(threads=1, opening=Opening(image_size=8)), torch.zeros(2, 3, 8, 8)
    )
    assert found.net_mib >= 0.9 * weights_mib
    assert found.to_dict()["net"] == found.net_mib


@pytest.mark.slow
def test_a_child_that_fails_says_why(tmp_path):
    with pytest.raises(ToolchainError, match="does not exist; expected a checkpoint"):
        peak_memory(
            SubjectSpec(path=tmp_path / "none.pth"), OpenOptions(threads=1), torch.zeros(1, 3, 8, 8)
        )


def test_a_system_without_proc_has_a_reason_in_place_of_memory(stage, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    stage.add("one")
    told = stage.run(memory=True).to_dict()
    assert told["memory"] == {"one": None}
    assert "expected Linux" in told["memory_reason"]
