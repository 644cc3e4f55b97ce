"""The dispatcher without Python: built here, held against Python's case by case and bit by bit."""

import configparser
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import compress.runtime
from compress.errors import CompressError, UserInputError
from compress.export.export_job import ExportJob, export_checkpoint
from compress.files import sha256_of
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import (
    MANIFEST,
    Manifest,
    Segment,
    TensorSpec,
    read_manifest,
    write_manifest,
)
from compress.runtime.preprocessing import Preprocessing
from tests.export import triton_bundles
from tests.runtime import crossing_bundle, test_manifest
from tests.runtime.test_bundle_opening import changed, endless
from tools.fuzzing.bundles import manifests, onnx_files

SOURCES = Path(compress.runtime.__file__).parent / "cpp"
FORMAT_1 = Path(__file__).parent / "format_1.bundle"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="there is no C++ compiler (g++) on this machine"
)

# A program of a user: PROBE BUNDLE LIBRARY IMAGES COUNT WAY. Results are raw bytes.
PROBE = r"""
#include <atomic>
#include <cstring>
#include <fstream>
#include <iostream>
#include <thread>

#include "early_exit.hpp"

using Bytes = std::vector<char>;

template <typename Value>
void write(const std::vector<Value>& values) {
  std::cout.write(reinterpret_cast<const char*>(values.data()),
                  static_cast<std::streamsize>(values.size() * sizeof(Value)));
}

long resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    long found = 0;
    if (word == "VmRSS:" && status >> found) return found;
  }
  return -1;
}

bool is_same(const early_exit::Dispatched& one, const early_exit::Dispatched& other) {
  return one.exits == other.exits && one.classes == other.classes &&
         std::memcmp(one.logits.data(), other.logits.data(),
                     one.logits.size() * sizeof(float)) == 0;
}

int main(int, char** texts) {
  const std::string way = texts[5];
  early_exit::Options options;
  options.threads = 1;
  options.library = texts[2];
  early_exit::Dispatcher dispatcher(texts[1], options);
  const std::size_t count = std::stoul(texts[4]);
  const std::size_t size = dispatcher.manifest().image().elements();
  std::ifstream file(texts[3], std::ios::binary);
  const Bytes bytes{std::istreambuf_iterator<char>(file), {}};
  const auto* pixels = reinterpret_cast<const std::uint8_t*>(bytes.data());
  const auto* images = reinterpret_cast<const float*>(bytes.data());
  if (way == "grow") {
    for (std::size_t done = 0, start = 0, before = 0; done < 12000; ++done) {
      dispatcher.run(images + start * size, done % 100 == 0 ? count : 1);
      start = (start + 1) % count;
      if (done == 2000) before = static_cast<std::size_t>(resident_kib());
      if (done == 11999) std::cout << resident_kib() - static_cast<long>(before);
    }
    return 0;
  }
  if (way == "threads") {
    const early_exit::Dispatched wanted = dispatcher.run(images, count);
    std::atomic<int> same{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int k = 0; k < 50; ++k) same += is_same(dispatcher.run(images, count), wanted);
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::cout << same;
    return 0;
  }
  if (way == "bars") {  // of the first exit 1, which no gate of these images reaches
    std::vector<double> bars = dispatcher.manifest().thresholds();
    bars[0] = 1;
    dispatcher.set_thresholds(bars);
  }
  const bool times = way == "times";
  const early_exit::Dispatched found =
      way == "pixels" ? dispatcher.run(pixels, count) : dispatcher.run(images, count, times);
  if (times) {
    for (const auto& each : found.segment_ms) {
      std::cout << each.segment << ' ' << each.images << ' ' << (each.milliseconds > 0) << '\n';
    }
    return 0;
  }
  write(found.exits);
  write(found.classes);
  write(found.logits);
  for (const early_exit::Output& output : found.outputs) write(output.bytes);
  return 0;
}
"""


def built(config, name, flags):
    """Compile the three programs, where they were not already; return their folder."""
    digest = hashlib.sha256(repr([PROBE, WARNINGS, flags]).encode())
    for source in sorted(SOURCES.rglob("*.[ch]pp")):
        digest.update(source.read_bytes())
    kept = Path(config.cache.mkdir("cpp")) / f"{name}-{digest.hexdigest()[:16]}"
    if not kept.exists():
        for old in kept.parent.glob(f"{name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="new-", dir=kept.parent))
        compile_programs(folder, flags)
        with contextlib.suppress(OSError):  # another worker was first
            folder.rename(kept)
    return kept


def compile_programs(folder, flags):
    (folder / "probe.cpp").write_text(PROBE)
    examples = SOURCES / "examples"
    names = ("early_exit", "classify", "check_bundle", "probe")
    files = (SOURCES, examples, examples, folder)

    def compiled(where, name):
        source, result = where / f"{name}.cpp", folder / f"{name}.o"
        command = ["g++", "-std=c++17", *WARNINGS, *flags, f"-I{SOURCES}", "-c", source]
        run([*command, "-o", result])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, files, names))
    for name in names[1:]:
        parts = [folder / f"{name}.o", folder / "early_exit.o", "-o", folder / name]
        run(["g++", *flags, *parts, "-pthread", "-ldl"])


def run(command, code=0, **options):
    done = subprocess.run(command, capture_output=True, check=False, **options)
    shown = (done.stdout[-2000:] + done.stderr[-6000:]).decode(errors="replace")
    assert done.returncode == code, shown
    return done


@pytest.fixture(scope="module")
def programs(request):
    return built(request.config, "plain", ["-O0"])


@pytest.fixture(scope="module")
def sanitized(request):
    return built(request.config, "sanitized", SANITIZED)


@pytest.fixture(scope="module")
def library():
    """The library that Python runs, so that results are those of the very same kernels."""
    (found,) = Path(find_spec("onnxruntime").origin).parent.glob("capi/libonnxruntime.so.*")
    return str(found)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """Its five crossing tensors are of four types; the manifest tells how pixels are normalised."""
    folder = tmp_path_factory.mktemp("unet") / "unet.bundle"
    crossing_bundle.write_bundle(folder)
    value = json.loads((folder / MANIFEST).read_text())
    value["preprocessing"] = Preprocessing((2, 4), "crop", 2, (0.485,), (0.229,)).to_dict()
    (folder / MANIFEST).write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def unet_images():
    gates = np.random.default_rng(0).integers(-32, 64, (200, 3)) / 64
    return crossing_bundle.images_with(gates)


class Probed:
    """What the probe printed, as the Dispatcher of Python returns it."""

    def __init__(self, content, images, manifest):
        classes = len(manifest.classes)
        kinds = [("exits", np.int64, ()), ("classes", np.int64, ()), ("logits", np.float32, None)]
        kinds += [
            (s.name, s.dtype, s.shape) for s in manifest.further_outputs if not manifest.exits
        ]
        self.all, place = {}, 0
        for name, dtype, shape in kinds:
            whole = (images, *((classes,) if shape is None else shape))
            size = int(np.prod(whole)) * np.dtype(dtype).itemsize
            part = content[place : place + size]
            self.all[name] = np.frombuffer(part, dtype=dtype).reshape(whole)
            place += size
        assert place == len(content)


def probed(programs, library, bundle, images, way, tmp_path, **options):
    (tmp_path / "images").write_bytes(np.ascontiguousarray(images).tobytes())
    command = [programs / "probe", bundle, library, tmp_path / "images", str(len(images)), way]
    return run(command, **options).stdout


def assert_same_bits(found, wanted):
    """Assert that arrays are equal, not-a-number too, whatever its bits."""
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def assert_dispatches_the_same(content, done, manifest):
    found = Probed(content, len(done.exits), manifest).all
    assert_same_bits(found.pop("exits"), done.exits)
    assert_same_bits(found.pop("classes"), done.classes)
    assert_same_bits(found.pop("logits"), done.logits)
    assert list(found) == list(done.outputs)
    for name, values in found.items():
        assert_same_bits(values, done.outputs[name])


# ---- the same results -------------------------------------------------------------------------


def test_images_in_batches_with_several_crossing_tensors_give_the_same_bits(
    programs, library, unet, unet_images, tmp_path
):
    content = probed(programs, library, unet, unet_images, "run", tmp_path)
    with Dispatcher(unet, "onnxruntime", threads=1, provider="cpu") as dispatcher:
        done = dispatcher.run(unet_images)
        assert_dispatches_the_same(content, done, dispatcher.manifest)
    assert np.bincount(done.exits, minlength=4).min() > 10  # or the test shows little
    wanted_logits, wanted_exits = crossing_bundle.early_exit(unet_images)
    found = Probed(content, len(unet_images), dispatcher.manifest).all
    assert found["exits"].tolist() == wanted_exits.tolist()
    np.testing.assert_allclose(found["logits"], wanted_logits, rtol=1e-4, atol=1e-4)


def test_thresholds_that_are_set_hold_from_then_on(programs, library, unet, unet_images, tmp_path):
    content = probed(programs, library, unet, unet_images, "bars", tmp_path)
    bars = [1.0, *crossing_bundle.THRESHOLDS[1:]]
    with Dispatcher(unet, "onnxruntime", threads=1, thresholds=bars) as dispatcher:
        done = dispatcher.run(unet_images)
        assert_dispatches_the_same(content, done, dispatcher.manifest)
    assert 0 not in done.exits


def test_a_bar_is_compared_in_float64(programs, library, unet, tmp_path):
    """In float32 0.7 is less than 0.7, and 0.8 is more than 0.8."""
    np.save(tmp_path / "a.npy", crossing_bundle.images_with([[0.7, -1, -1], [0.8, -1, -1]]))
    for bar, exits in (("0.7", [3, 0]), ("0.8,0.5,0.5", [3, 0])):
        done = classified(programs, library, unet, tmp_path / "a.npy", "--thresholds", bar)
        lines = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
        assert [line["exit"] for line in lines] == exits


def test_pixels_are_normalised_to_the_same_bits(programs, library, unet, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 4), dtype=np.uint8)
    content = probed(programs, library, unet, pixels, "pixels", tmp_path)
    with Dispatcher(unet, "onnxruntime", threads=1) as dispatcher:
        assert_dispatches_the_same(content, dispatcher.run(pixels), dispatcher.manifest)


def test_what_is_not_finite_has_no_class_and_spoils_no_neighbour(programs, library, tmp_path):
    """NaN and infinity in images, a gate that is NaN, and logits that overflow."""
    bundle = tmp_path / "tiny.bundle"
    triton_bundles.write_bundle(bundle)
    images = triton_bundles.images_with([[0, 0], [1, 0], [np.nan, 0.25], [0, 1], [0, 0], [0, 0]])
    images[0, 0, 0, 1], images[3, 0, 1, 3] = np.nan, -np.inf
    images[4, 0, 1] = 3e38
    for some in (images, images[:1], images[4:5], images[1:2]):
        content = probed(programs, library, bundle, some, "run", tmp_path)
        with Dispatcher(bundle, "onnxruntime", threads=1) as dispatcher:
            done = dispatcher.run(some)
            assert_dispatches_the_same(content, done, dispatcher.manifest)
    done = Probed(
        probed(programs, library, bundle, images, "run", tmp_path), 6, dispatcher.manifest
    ).all
    assert done["classes"][[0, 3, 4]].tolist() == [-1, -1, -1]
    assert (done["classes"][[1, 2, 5]] >= 0).all()
    assert np.isnan(done["logits"][[0, 3]]).all()


def test_format_1_runs(programs, library, tmp_path):
    with Dispatcher(FORMAT_1, "onnxruntime", threads=1) as dispatcher:
        shape = dispatcher.manifest.image.shape
        images = np.random.default_rng(0).normal(size=(30, *shape)).astype(np.float32)
        content = probed(programs, library, FORMAT_1, images, "run", tmp_path)
        assert_dispatches_the_same(content, dispatcher.run(images), dispatcher.manifest)


LOGITS = TensorSpec("logits", "float32", (2,))
FURTHER = (
    TensorSpec("a.map", "float32", (1, 2)),
    TensorSpec("half", "float16", (2,)),
    TensorSpec("labels", "int32", ()),
)


def write_outputs_bundle(folder, outputs):
    """A network without exits that gives more than logits, or none."""
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["image"], ["logits"], axes=[1, 2], keepdims=0),
        node("ReduceSum", ["image", "axes"], ["a.map"], keepdims=0),
        node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16),
        node("ArgMax", ["logits"], ["place"], axis=1, keepdims=0),
        node("Cast", ["place"], ["labels"], to=TensorProto.INT32),
    ]
    kinds = {"float32": 1, "float16": 10, "int32": 6}
    image = TensorSpec("image", "float32", (1, 2, 2))
    values = [
        [helper.make_tensor_value_info(s.name, kinds[s.dtype], ["N", *s.shape]) for s in specs]
        for specs in ((image,), outputs)
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "network", *values, [axes])
    folder.mkdir()
    path = folder / "segment_0.onnx"
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    segment = Segment(path.name, sha256_of(path), None, 4, None, (image,), outputs)
    classes = ("a", "b") if LOGITS in outputs else ()
    write_manifest(Manifest("more", classes, None, (1, 4), "any", 13, (segment,)), folder)
    return folder


@pytest.mark.parametrize(
    "outputs", [(LOGITS, *FURTHER), FURTHER], ids=["classifier", "no-classifier"]
)
def test_further_outputs_are_given(programs, library, tmp_path, outputs):
    bundle = write_outputs_bundle(tmp_path / "more.bundle", outputs)
    images = np.random.default_rng(0).normal(size=(9, 1, 2, 2)).astype(np.float32)
    images[5, 0, 0, 0] = np.inf
    content = probed(programs, library, bundle, images, "run", tmp_path)
    with Dispatcher(bundle, "onnxruntime", threads=1) as dispatcher:
        done = dispatcher.run(images)
        assert_dispatches_the_same(content, done, dispatcher.manifest)
    assert done.outputs["labels"][5] == -1
    np.testing.assert_array_equal(done.outputs["a.map"][:5], images[:5].sum(2))


def test_times_are_told_of_every_segment_that_ran(programs, library, unet, unet_images, tmp_path):
    told = probed(programs, library, unet, unet_images[:8], "times", tmp_path).decode()
    with Dispatcher(unet, "onnxruntime", threads=1) as dispatcher:
        wanted = dispatcher.run(unet_images[:8], times=True).segment_ms
    assert told.splitlines() == [f"{segment} {images} 1" for segment, images, _ in wanted]


def test_threads_may_share_a_dispatcher(programs, library, unet, unet_images, tmp_path):
    assert probed(programs, library, unet, unet_images[:20], "threads", tmp_path) == b"200"


def test_memory_does_not_grow_over_ten_thousand_images(
    programs, library, unet, unet_images, tmp_path
):
    grown_kib = int(probed(programs, library, unet, unet_images[:60], "grow", tmp_path))
    assert grown_kib < 256


# ---- the same refusals ------------------------------------------------------------------------


def cases_of_test_manifest():
    """Changes of a manifest that Python's own test refuses, each with its name."""
    test = test_manifest.test_a_manifest_that_cannot_be_is_refused_in_one_sentence
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [(param.id, param.values[0]) for param in mark.args[1]]


def told_by_python(bundle):
    """Why a bundle is refused; None where it is not."""
    try:
        read_manifest(bundle)
    except CompressError as err:
        return str(err)
    return None


WORDS_OF_PYTHON = (
    # Where in the file is told by lines there, by bytes here; other words of the interpreter.
    (r"( starting)?( at)?(: line \d+ column \d+)? ?\((char|byte) \d+\)", ""),
    (r"'utf-8' codec [^)]*|byte \d+ is no UTF-8", "no UTF-8"),
    (r"maximum recursion depth exceeded[^)]*|its values are nested too deeply", "too deep"),
    (
        r"Exceeds the limit .* increase the limit|a whole number has too many digits",
        "too many digits",
    ),
    (r"(expected numbers for sizes, mean and std).*", r"\1"),
)


def words(told):
    for pattern, word in WORDS_OF_PYTHON:
        told = re.sub(pattern, word, told, flags=re.DOTALL)
    return told


def assert_refused_alike(programs, bundles):
    """Assert that each bundle is taken or refused as by Python, for the same reason."""
    wanted = [told_by_python(bundle) for bundle in bundles]
    code = 3 if any(wanted) else 0
    done = run([programs / "check_bundle", *bundles], code).stdout.decode()
    found = done.split("\n")[:-1]
    assert len(found) == len(bundles)
    for bundle, line, why in zip(bundles, found, wanted, strict=True):
        if why is None:
            assert re.fullmatch(rf"{re.escape(str(bundle))}: .* \d+ segments", line)
        else:
            assert words(line) == words(why)
    return wanted


def test_hostile_manifests_are_refused_for_the_same_reasons(programs, tmp_path):
    bundles = []
    for name, change in cases_of_test_manifest():
        bundles.append(tmp_path / name)
        triton_bundles.write_bundle(bundles[-1])
        test_manifest.altered(bundles[-1], change)
    assert len(bundles) > 40
    assert None not in assert_refused_alike(programs, bundles)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000, b"NaN", b"\xef\xbb\xbf{}", b"{} x"),
        *(
            b'{"a": 01}',
            b'{"a": 1.}',
            b'{"a": -}',
            b'{"a": "\\x"}',
            b'{"a": "\\u12g4"}',
            b'{"a" 1}',
        ),
        *(b'{"a": "\n"}', b'{"a": "b', b'{"a": 1,}', b"{1: 2}", b'{"a": \xed\xa0\x80}', b"\x00"),
        *(b'{"format": 1e400}', b'{"format": -1.5e-7}', b'{"format": 1e22}', b'{"format": 1e16}'),
        *(b'{"format": "\\ud83d\\ude00\\ud83d\\u0007\'"}', b'{"format": 0.1, "format": -0}'),
        *(
            b'{"format": {"a": [true, null, 123456789012345678]}}',
            b'{"format": ' + b"9" * 5000 + b"}",
        ),
        *(b'{"format": 12345.678}', b'{"format": 100000.0}', b'{"format": 5e-324}'),
    ],
)
def test_damaged_json_is_refused_alike(programs, tmp_path, content):
    triton_bundles.write_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST).write_bytes(content)
    assert_refused_alike(programs, [tmp_path / "bundle"])


def test_what_is_no_bundle_and_segments_that_are_missing_or_altered(programs, tmp_path):
    bundles = [tmp_path / name for name in ("none", "file", "no-manifest", "missing", "altered")]
    for bundle in bundles[3:]:
        triton_bundles.write_bundle(bundle)
    bundles[1].write_text("x")
    bundles[2].mkdir()
    (bundles[3] / "segment_2.onnx").unlink()
    file = bundles[4] / "segment_1.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert None not in assert_refused_alike(programs, bundles)


@pytest.mark.parametrize(
    "content",
    [
        *(b"x", b"\x3a\x05ab", b"\x38\x01", b"\x0b", b"\x80" * 11, b"\x08\x80"),
        b"\x3a\x06\x2a\x04\x6a\x02ab",  # external data of a weight
        b"\x3a\x04\x2a\x02\x70\x01",  # its place: elsewhere
        b"\x3a\x04\x2a\x02\x70\x00",  # its place: here
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # longer than 64 bits can say
    ],
)
def test_files_are_read_as_onnx_alike(programs, tmp_path, content):
    bundle = tmp_path / "bundle"
    triton_bundles.write_bundle(bundle)
    (bundle / "segment_1.onnx").write_bytes(content)
    value = json.loads((bundle / MANIFEST).read_text())
    value["segments"][1]["sha256"] = sha256_of(bundle / "segment_1.onnx")
    (bundle / MANIFEST).write_text(json.dumps(value))
    assert_refused_alike(programs, [bundle])


def fuzzed(seeds, kind_of, count, folder, seed=0):
    """Mutated copies of bundles."""
    rng, found = random.Random(seed), []
    for number, bundle in enumerate(seeds):
        kind = kind_of(bundle)
        for place in range(count):
            case = folder / f"{number}-{place}"
            shutil.copytree(bundle, case)
            kind.mutate(rng, case)
            found.append(case)
    return found


def seeds_with(unet, folder):
    triton_bundles.write_bundle(folder / "tiny.bundle")
    return [unet, FORMAT_1, folder / "tiny.bundle"]


def test_mutated_manifests_are_taken_or_refused_alike(programs, unet, tmp_path):
    bundles = fuzzed(seeds_with(unet, tmp_path), manifests, 80, tmp_path)
    wanted = assert_refused_alike(programs, bundles)
    assert 5 < wanted.count(None) < 200


@pytest.mark.slow
def test_many_mutated_manifests_are_taken_or_refused_alike(programs, unet, tmp_path):
    assert_refused_alike(programs, fuzzed(seeds_with(unet, tmp_path), manifests, 700, tmp_path, 1))


def classified(programs, library, bundle, *arguments, **options):
    command = [programs / "classify", bundle, *arguments, "--library", library, "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def opens_alike(programs, library, case, image):
    """Whether classify and Python's Dispatcher both take a bundle, or both refuse it."""
    shape = np.load(image).shape
    try:
        with Dispatcher(case, "onnxruntime", threads=1, first_call_seconds=5) as dispatcher:
            is_taken = dispatcher.manifest.image.shape == shape
    except CompressError as err:
        is_taken = False
        code = err.exit_code
    done = classified(programs, library, case, image, "--first-call-seconds", "5")
    if is_taken:
        return "Sanitizer" not in done.stderr and done.returncode == 0
    return done.returncode in (3, code) and "Sanitizer" not in done.stderr


@pytest.mark.slow
def test_mutated_onnx_files_are_taken_or_refused_alike(programs, library, tmp_path):
    image = tmp_path / "image.npy"
    np.save(image, np.zeros((1, 2, 4), np.float32))
    triton_bundles.write_bundle(tmp_path / "tiny.bundle")
    for case in fuzzed([tmp_path / "tiny.bundle"], onnx_files, 60, tmp_path):
        assert opens_alike(programs, library, case, image), case


def test_a_file_of_another_bundle_and_a_loop_without_end_are_told(
    programs, library, unet, tmp_path
):
    image = tmp_path / "image.npy"
    np.save(image, np.zeros((1, 2, 4), np.float32))
    swapped, looping = tmp_path / "swapped", tmp_path / "looping"
    shutil.copytree(unet, swapped)
    files = [swapped / f"segment_{i}.onnx" for i in (1, 2)]
    contents = [file.read_bytes() for file in files]
    value = json.loads((swapped / MANIFEST).read_text())
    for file, content, place in zip(files, contents[::-1], (1, 2), strict=True):
        file.write_bytes(content)
        value["segments"][place]["sha256"] = sha256_of(file)
    (swapped / MANIFEST).write_text(json.dumps(value))
    done = classified(programs, library, swapped, image)
    with pytest.raises(UserInputError) as caught:
        Dispatcher(swapped, "onnxruntime")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"classify: {caught.value}\n"

    triton_bundles.write_bundle(looping)
    changed(looping, 0, endless)
    done = classified(programs, library, looping, image, "--first-call-seconds", "0.5", timeout=60)
    assert (done.returncode, done.stdout) == (4, "")
    assert "did not end within 0.5 seconds; it may hold an endless loop" in done.stderr


# ---- the program ------------------------------------------------------------------------------


def test_a_folder_is_classified_line_by_line(programs, library, unet, unet_images, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4), dtype=np.uint8)
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    np.save(folder / "a.npy", unet_images[:11])
    np.save(folder / "c.npy", unet_images[11])
    (folder / "inner" / "b.pgm").write_bytes(b"P5\n# made here\n4 2\n255\n" + pixels.tobytes())
    (folder / "d.pgm").write_bytes(b"P5\n5 2\n255\n" + bytes(10))
    (folder / "notes.txt").write_text("no image")
    done = classified(programs, library, unet, folder, "--batch", "8", "--logits", "--times")
    assert done.returncode == 3  # d.pgm is of another size
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    images = [*unet_images[:12], pixels[None]]
    with Dispatcher(unet, "onnxruntime", threads=1) as dispatcher:
        alone = [dispatcher.run(image) for image in images]
    names = [f"{folder}/a.npy[{i}]" for i in range(11)]
    names += [f"{folder}/{name}" for name in ("c.npy", "d.pgm", "inner/b.pgm")]
    assert [line["image"] for line in lines[:-1]] == names
    (error,) = [line for line in lines if "error" in line]
    assert "is 5 by 2 pixels of 1 channels; expected (1, 2, 4)" in error["error"]
    told = [line for line in lines[:-1] if "error" not in line]
    for line, wanted in zip(told, alone, strict=True):
        assert line["exit"] == wanted.exits[0]
        assert line["class_index"] == wanted.classes[0]
        assert line["class"] == "abc"[wanted.classes[0]]
        np.testing.assert_allclose(line["logits"], wanted.logits[0], rtol=1e-6)
        likely = np.exp(wanted.logits[0] - wanted.logits.max())
        assert line["confidence"] == pytest.approx(1 / likely.sum(), rel=1e-5)
        assert len(line["segment_ms"]) == wanted.exits[0] + 1
    exits = np.bincount([int(each.exits[0]) for each in alone], minlength=4)
    summary = {"backend": "onnxruntime", "images": 14, "errors": 1, "exits": exits.tolist()}
    assert lines[-1] == {"summary": summary}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "at least one image"),
        (("a.npy", "--what", "1"), 2, "there is no option --what"),
        (("a.npy", "--batch"), 2, "--batch has no value"),
        (("a.npy", "--batch", "0"), 3, "--batch is 0; expected a whole number from 1 to 4096"),
        (("a.npy", "--batch", "9"), 3, "--batch is 9; the bundle takes at most 8"),
        (("a.npy", "--thresholds", "0.5,x"), 3, "--thresholds is 'x'; expected a number"),
        (("a.npy", "--thresholds", "0.5,0.5"), 3, "2 thresholds for 3 exits; expected one each"),
        (("a.npy", "--thresholds", "1.5"), 3, "a threshold is 1.5; expected 0 <= threshold <= 1"),
        (("a.npy", "--thresholds", "nan"), 3, "--thresholds is 'nan'; expected a number"),
        (("a.npy", "--first-call-seconds", "0"), 3, "--first-call-seconds is 0; expected seconds"),
        (("a.npy", "--library", "/none.so"), 4, "ONNX Runtime's library does not load (/none.so"),
        (("a.npy", "--library", "libm.so.6"), 4, "libm.so.6 is not that of ONNX Runtime"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(programs, library, unet, arguments, code, message):
    given = () if "--library" in arguments else ("--library", library)
    command = [programs / "classify", unet, *given, *arguments]
    done = run(command, code, cwd=programs)
    assert message in done.stderr.decode()
    assert done.stdout == b""


def test_arrays_that_do_not_fit_are_errors_of_their_own(programs, library, unet, tmp_path):
    good = np.zeros((1, 2, 4), np.float32)
    arrays = {
        "double": good.astype(np.float64),
        "fortran": np.asfortranarray(np.zeros((2, 1, 2, 4), np.float32)),
        "good": good,
        "none": np.zeros((0, 1, 2, 4), np.float32),
        "shape": np.zeros((1, 4, 2), np.float32),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    content = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "long.npy").write_bytes(content + b"x")
    (tmp_path / "short.npy").write_bytes(content[:-1])
    (tmp_path / "text.npy").write_text("text")
    done = classified(programs, library, unet, tmp_path)
    told = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    good_ones = [Path(line["image"]).stem for line in told if "error" not in line]
    assert (done.returncode, len(told), good_ones) == (3, 8, ["good"])


# ---- the whole way, slowly --------------------------------------------------------------------


def exported(network, folder):
    """A bundle of a network of digits, from a checkpoint."""
    from compress.checkpoint import save
    from compress.data.spec import load_data

    digits = load_data("digits", image_size=16)
    meta = {
        "data": {"name": "digits"},
        "preprocessing": digits.preprocessing.to_dict(),
        "classes": list(digits.classes),
    }
    save(network, folder / "network.pth", meta=meta)
    job = ExportJob(
        checkpoint=folder / "network.pth",
        output=folder / "network.bundle",
        split_exits=True,
        thresholds=(0.5, 0.5, 0.5),
        target="onnxruntime",
        max_batch=8,
        progress=False,
    )
    export_checkpoint(job)
    split = digits.splits["test"]
    images = digits.normalize(split.images(torch.arange(len(split))))
    return job.output, images.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "gfnet"])
def test_all_digits_of_exported_networks_give_the_same_bits(programs, library, tmp_path, kind):
    from tests import exit_networks

    bundle, images = exported(getattr(exit_networks, kind)(), tmp_path)
    assert len(images) >= 300
    with Dispatcher(bundle, "onnxruntime", threads=1, provider="cpu") as dispatcher:
        done = dispatcher.run(images)
        manifest = dispatcher.manifest
        alone = [dispatcher.run(image) for image in images]
    assert set(done.exits.tolist()) == {0, 1, 2, 3}
    assert_dispatches_the_same(
        probed(programs, library, bundle, images, "run", tmp_path), done, manifest
    )
    np.save(tmp_path / "images.npy", images)
    told = classified(programs, library, bundle, tmp_path / "images.npy", "--logits")
    lines = [json.loads(line) for line in told.stdout.splitlines()[:-1]]
    found = np.array([line["logits"] for line in lines], dtype=np.float32)
    assert_same_bits(found, np.concatenate([each.logits for each in alone]))
    assert [line["exit"] for line in lines] == [int(each.exits[0]) for each in alone]


@pytest.mark.slow
def test_sanitizers_find_nothing(sanitized, library, unet, unet_images, tmp_path, monkeypatch):
    """Addresses, leaks and undefined behaviour, in what is refused and in what runs."""
    (tmp_path / "suppressions").write_text("leak:libonnxruntime\n")
    monkeypatch.setenv("LSAN_OPTIONS", f"suppressions={tmp_path}/suppressions:print_suppressions=0")
    bundles = fuzzed(seeds_with(unet, tmp_path), manifests, 150, tmp_path, 2)
    assert_refused_alike(sanitized, bundles)
    test_what_is_not_finite_has_no_class_and_spoils_no_neighbour(sanitized, library, tmp_path)
    content = probed(sanitized, library, unet, unet_images, "run", tmp_path)
    with Dispatcher(unet, "onnxruntime", threads=1) as dispatcher:
        assert_dispatches_the_same(content, dispatcher.run(unet_images), dispatcher.manifest)
    assert probed(sanitized, library, unet, unet_images[:20], "threads", tmp_path) == b"200"
    bundle = write_outputs_bundle(tmp_path / "more.bundle", (LOGITS, *FURTHER))
    images = np.full((9, 1, 2, 2), np.nan, np.float32)
    probed(sanitized, library, bundle, images, "run", tmp_path)
    image = tmp_path / "image.npy"
    np.save(image, unet_images[0])
    (tmp_path / "onnx").mkdir()
    for case in fuzzed([tmp_path / "tiny.bundle"], onnx_files, 12, tmp_path / "onnx", 3):
        assert opens_alike(sanitized, library, case, image), case


def test_every_source_is_in_the_wheel():
    root = SOURCES.parents[2]
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    patterns = config["options.package_data"]["compress.runtime"].split()
    packed = {path for each in patterns for path in SOURCES.parent.glob(each)}
    packed = {path for path in packed if SOURCES in path.parents}
    assert packed == {path for path in SOURCES.rglob("*") if path.is_file()}
    assert {path.suffix for path in packed} == {".hpp", ".cpp", ".txt"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no CMake on this machine")
def test_cmake_builds_the_programs_and_a_project_of_ones_own(library, unet, unet_images, tmp_path):
    own = tmp_path / "robot"
    own.mkdir()
    (own / "robot.cpp").write_text(PROBE)
    (own / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(robot LANGUAGES CXX)\n"
        f"add_subdirectory({SOURCES} early_exit)\n"
        "add_executable(robot robot.cpp)\ntarget_link_libraries(robot early_exit)\n"
    )
    for source, build in ((SOURCES, tmp_path / "a"), (own, tmp_path / "b")):
        run(["cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Debug"])
        run(["cmake", "--build", build])
    np.save(tmp_path / "images.npy", unet_images)
    done = classified(tmp_path / "a", library, unet, tmp_path / "images.npy")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(unet_images) + 1
    os.rename(tmp_path / "b" / "robot", tmp_path / "b" / "probe")
    content = probed(tmp_path / "b", library, unet, unet_images, "run", tmp_path)
    with Dispatcher(unet, "onnxruntime", threads=1) as dispatcher:
        assert_dispatches_the_same(content, dispatcher.run(unet_images), dispatcher.manifest)
