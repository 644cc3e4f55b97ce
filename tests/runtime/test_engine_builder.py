"""Building a set of engines: with a stand-in for TensorRT, and with a process that is killed."""

import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from compress.errors import DiskFullError, ToolchainError, UnsupportedModelError, UserInputError
from compress.export.lowering import lowered
from compress.export.targets import target
from compress.files import sha256_of
from compress.runtime import cuda, engine_builder
from compress.runtime.engine_builder import build_engines
from compress.runtime.engines import ENGINES, read_engines
from compress.runtime.expected_rows import expected_rows
from compress.runtime.manifest import read_manifest, write_manifest
from compress.runtime.onnx_float32 import float32_nodes
from compress.runtime.reference_rates import ReferenceRates
from compress.runtime.trtexec import TIMING_CACHE
from tests.export.small_graphs import FLOAT, HALF, valid_graph, value
from tests.export.triton_bundles import write_bundle as write_exit_bundle
from tests.runtime import crossing_bundle
from tests.runtime.builder_stand_in import FakeTensorRT
from tests.runtime.tiny_bundle import write_bundle


def with_precision(bundle: Path, precision: str) -> None:
    """Let the manifest say another precision; the stand-in for TensorRT looks at nothing else."""
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    for segment in value["segments"]:
        segment["precision"] = precision
    path.write_text(json.dumps(value))


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def install(monkeypatch):
    """Let `import tensorrt` find a stand-in, and CUDA a GPU."""

    def put(generation: int = 10, version: str = "10.3.0.30", capability: str = "8.7"):
        fake = FakeTensorRT(generation, version)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        monkeypatch.setattr(cuda, "probe_cuda", lambda: cuda.DeviceInfo("Orin", capability))
        return fake

    return put


def engines_of(bundle: Path):
    return read_engines(bundle, read_manifest(bundle))


def test_the_set_says_what_it_was_built_from_and_for(bundle, install):
    install()
    engines = build_engines(bundle)
    assert engines == engines_of(bundle)
    assert (engines.builder, engines.tensorrt_version) == ("tensorrt", "10.3.0.30")
    assert engines.device == cuda.DeviceInfo("Orin", "8.7")
    assert [each.file for each in engines.segments] == ["segment_0.engine", "segment_1.engine"]
    for engine in engines.segments:
        onnx_file = bundle / engine.file.replace(".engine", ".onnx")
        assert engine.onnx_sha256 == sha256_of(onnx_file)
        assert (bundle / engine.file).read_bytes()[10:42].hex() == engine.onnx_sha256


@pytest.mark.parametrize(
    ("generation", "precision", "network_flags", "builder_flags"),
    [
        pytest.param(8, "fp32", 1, [], id="8 knows explicit batch alone"),
        pytest.param(
            8, "fp16", 1, ["FP16", "OBEY_PRECISION_CONSTRAINTS"], id="8 is allowed float16"
        ),
        pytest.param(8, "int8", 1, ["INT8"], id="8 is allowed int8"),
        pytest.param(10, "fp16", 3, [], id="10 is strongly typed, nothing else said"),
        pytest.param(10, "int8", 3, [], id="10 reads int8 from the file"),
        pytest.param(11, "fp16", 1, [], id="11 has one flag left, strong types"),
    ],
)
def test_flags_follow_the_names_that_there_are(
    bundle, install, generation, precision, network_flags, builder_flags
):
    fake = install(generation)
    with_precision(bundle, precision)
    build_engines(bundle)
    assert fake.flags == [network_flags] * 2
    assert [config.flags for config in fake.builds] == [builder_flags] * 2
    assert {config.profiling_verbosity for config in fake.builds} == {"detailed"}


def test_tensorrt_8_is_allowed_float16_where_hidden_states_are_halves(tmp_path, install):
    fake = install(8)
    write_bundle(tmp_path, dtype="float16")
    with_precision(tmp_path, "int8")
    build_engines(tmp_path)
    assert [config.flags for config in fake.builds] == [["FP16", "INT8"]] * 2


def lowered_norm():
    """A layer norm in half precision, as TensorRT 8.5 takes it: its squares overflow half."""
    node = onnx.helper.make_node("LayerNormalization", ["image", "g", "b"], ["y"], "norm", axis=-1)
    halves = {name: np.ones(8, np.float16) for name in "gb"}
    made = valid_graph(
        [node], [value("image", [1, 8], HALF)], [value("y", [1, 8], HALF)], opset=17, **halves
    )
    return lowered(made, target("jetpack5.1"))


def expected_in_float32(model):
    """Names of nodes that give float32, by the types that onnx infers."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.output]
    singles = {v.name for v in values if v.type.tensor_type.elem_type == FLOAT}
    return [node.name for node in graph.node if singles & set(node.output)]


def test_the_types_of_a_file_are_those_that_onnx_infers(tmp_path):
    path = tmp_path / "norm.onnx"
    onnx.save(lowered_norm(), path)
    found = float32_nodes(path)
    assert [node.name for node in found] == expected_in_float32(onnx.load(path))
    assert len(found) > 6
    assert all("/fp32/" in node.name for node in found)
    write_bundle(tmp_path / "half", dtype="float16")
    for file in ("segment_0.onnx", "segment_1.onnx"):
        found = [node.name for node in float32_nodes(tmp_path / "half" / file)]
        assert found == expected_in_float32(onnx.load(tmp_path / "half" / file))


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x3a\x05\x0a"])
def test_a_file_that_is_no_onnx_has_no_types(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"empty|cut off|longer|no field"):
        float32_nodes(tmp_path / "a.onnx")


def test_tensorrt_8_keeps_in_float32_what_the_file_has_in_it(tmp_path, install, caplog):
    fake = install(8)
    caplog.set_level(logging.INFO)
    write_bundle(tmp_path, dtype="float16")
    build_engines(tmp_path)
    for file, layers in zip(("segment_0.onnx", "segment_1.onnx"), fake.layers, strict=True):
        pinned = [layer.name for layer in layers if layer.output_types]
        assert pinned == expected_in_float32(onnx.load(tmp_path / file))
        assert f"{file}: {len(pinned)} of {len(layers)} layers are kept in float32" in caplog.text
    named = {layer.name: layer for layer in fake.layers[0]}
    assert named["the_Sigmoid_15"].precision == FLOAT
    assert named["the_gate"].precision is None  # a reshape takes a size
    assert named["the_logits"].precision is None  # a cast takes halves
    (top,) = [layer for layer in fake.layers[0] if layer.type == "TOPK"]
    assert top.output_types == {0: FLOAT}  # not its places
    assert top.precision is None


@pytest.mark.parametrize(("generation", "precision"), [(8, "int8"), (8, "fp32"), (10, "fp16")])
def test_nothing_is_pinned_where_types_bind_or_nothing_is_half(
    bundle, install, generation, precision
):
    fake = install(generation)
    with_precision(bundle, precision)
    build_engines(bundle)
    assert fake.layers == []


def test_the_range_of_batches_becomes_a_profile_with_the_largest_as_optimum(bundle, install):
    fake = install()
    build_engines(bundle, workspace_mib=64, optimization_level=5)
    image, hidden = fake.builds
    assert image.profiles == [[("image", (1, 3, 16, 16), (4, 3, 16, 16), (4, 3, 16, 16))]]
    assert hidden.profiles == [[("hidden_0", (1, 16, 8), (4, 16, 8), (4, 16, 8))]]
    assert image.limits == [("workspace", 64 << 20)]
    assert image.builder_optimization_level == 5


def test_a_late_segment_is_fastest_for_what_is_expected_to_arrive(tmp_path, install):
    """Of the calibration images 70 % leave at the first exit, and none at the second."""
    manifest = write_exit_bundle(tmp_path, batch=32)
    rates = ReferenceRates((70, 0, 30), (0.5, 0.25))
    write_manifest(replace(manifest, notes={"calibration": rates.to_dict()}), tmp_path)
    fake = install()
    build_engines(tmp_path)
    optima = [config.profiles[0][0][2][0] for config in fake.builds]
    assert optima == [32, 16, 16]  # 9.6 images, padded to 16
    assert {config.profiles[0][0][3][0] for config in fake.builds} == {32}


@pytest.mark.parametrize(
    ("counts", "thresholds", "expected"),
    [
        ((1, 1, 2), (0.5, 0.25), [32, 32, 16]),  # 32, 24 and 16 images
        ((0, 99, 1), (0.5, 0.25), [32, 32, 1]),
        ((10, 0, 0), (0.5, 0.25), [32, 1, 1]),
        ((70, 0, 30), (0.9, 0.9), [32, 32, 32]),  # of other thresholds
        ((70, 30), (0.5,), [32, 32, 32]),  # of other exits
    ],
)
def test_what_is_expected_follows_the_calibration(tmp_path, counts, thresholds, expected):
    manifest = write_exit_bundle(tmp_path, batch=32)
    assert expected_rows(manifest) == [32, 32, 32]
    notes = {"calibration": ReferenceRates(counts, thresholds).to_dict()}
    assert expected_rows(replace(manifest, notes=notes)) == expected


def test_every_input_of_a_segment_has_its_range(tmp_path, install):
    fake = install()
    crossing_bundle.write_bundle(tmp_path)
    build_engines(tmp_path)
    assert fake.builds[3].profiles == [
        [
            ("hidden_0", (1, 8), (8, 8), (8, 8)),
            ("hidden_3", (1,), (8,), (8,)),
            ("hidden_4", (1, 8), (8, 8), (8, 8)),
        ]
    ]


def test_a_fixed_batch_needs_no_profile(tmp_path, install):
    fake = install()
    write_bundle(tmp_path, batch=(1, 1))
    build_engines(tmp_path)
    assert [config.profiles for config in fake.builds] == [[], []]


def test_tensorrt_8_5_without_optimization_levels_builds_and_says_so(bundle, install, caplog):
    fake = install(8, "8.5.2.2")
    build_engines(bundle, optimization_level=5)
    assert not hasattr(fake.builds[0], "builder_optimization_level")
    assert "tensorrt 8.5.2.2 has no optimization level" in caplog.text


def test_segments_share_one_timing_cache_which_stays_with_the_bundle(bundle, install):
    fake = install()
    build_engines(bundle)
    assert [config.cache for config in fake.builds] == [b"", b"+"]
    assert (bundle / TIMING_CACHE).read_bytes() == b"++"
    build_engines(bundle, force=True)
    assert (bundle / TIMING_CACHE).read_bytes() == b"++++"


def test_a_foreign_timing_cache_is_ignored_and_told(bundle, install, caplog):
    install()
    (bundle / TIMING_CACHE).write_bytes(b"of another GPU")
    build_engines(bundle)
    assert "timing.cache is damaged or of another GPU or TensorRT; it is made anew" in caplog.text
    assert (bundle / TIMING_CACHE).read_bytes() == b"++"


def test_a_set_that_fits_is_left_alone_until_forced(bundle, install, caplog):
    caplog.set_level(logging.INFO)
    fake = install()
    first = build_engines(bundle)
    assert build_engines(bundle) == first
    assert len(fake.builds) == 2
    assert "fit this device and stay as they are" in caplog.text
    assert build_engines(bundle, force=True) != first
    assert len(fake.builds) == 4


@pytest.mark.parametrize(
    "change", [{"version": "10.7.0.23"}, {"capability": "7.2"}], ids=["TensorRT", "GPU"]
)
def test_a_set_for_another_device_is_not_replaced_silently(bundle, install, change):
    install()
    former = build_engines(bundle)
    install(**change)
    with pytest.raises(UserInputError, match=r"were built for .* --force"):
        build_engines(bundle)
    assert engines_of(bundle) == former
    assert build_engines(bundle, force=True) == engines_of(bundle)


def test_an_altered_engine_is_not_taken_for_a_set(bundle, install):
    install()
    build_engines(bundle)
    (bundle / "segment_1.engine").write_bytes(b"altered")
    with pytest.raises(UserInputError, match=r"segment_1\.engine has sha256 .* --force"):
        build_engines(bundle)
    build_engines(bundle, force=True)
    engines_of(bundle)


@pytest.mark.parametrize(
    ("generation", "node"),
    [(8, r"node number 3: "), (10, r"node the_DFT_9 \(DFT\): ")],
)
def test_the_parsers_refusal_names_the_node(tmp_path, install, generation, node):
    install(generation)
    write_bundle(tmp_path, extra="DFT")
    expected = rf"refuses segment_1\.onnx: {node}UNSUPPORTED_NODE: No importer for DFT; export"
    with pytest.raises(UnsupportedModelError, match=expected):
        build_engines(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".cache",
        ".json",
        ".onnx",
        ".onnx",
    ]


def test_a_build_that_fails_says_why_and_leaves_the_former_set(bundle, install):
    fake = install()
    former = build_engines(bundle)
    fake.fails = 4
    with pytest.raises(ToolchainError, match=r"engine of segment_1\.onnx \(out of memory\)"):
        build_engines(bundle, force=True)
    assert engines_of(bundle) == former
    assert not list(bundle.glob(".*"))


@pytest.mark.parametrize(
    ("first", "remedy"),
    [
        ("Requested amount of GPU memory (8 bytes) could not be allocated", "limit --workspace"),
        ("Could not find any implementation for node /fc1/MatMul", "another --precision"),
        ("Int8 precision has been set for a layer", "export with --precision fp16"),
        ("Target GPU SM 53 is not supported by this TensorRT release", "this TensorRT (--target)"),
        ("CUDA initialization failure with error: 35", "update the driver"),
    ],
)
def test_the_first_error_of_a_build_is_told_with_its_remedy(bundle, install, first, remedy):
    fake = install()
    fake.says = [first, "Cuda Runtime (an illegal memory access was encountered)"]
    fake.fails = 1
    with pytest.raises(ToolchainError) as caught:
        build_engines(bundle)
    assert f"({first})" in str(caught.value)
    assert remedy in str(caught.value)
    fake.fails = 3
    fake.says = ["out of memory"]
    with pytest.raises(ToolchainError, match=r"\(out of memory\)"):  # of this build, not the last
        build_engines(bundle)


def test_a_full_disk_is_told_in_one_sentence(bundle, install, monkeypatch):
    install()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match=r"engine cannot be written: the disk is full"):
        build_engines(bundle)


def test_what_tensorrt_reads_must_be_what_the_manifest_says(bundle, install):
    install()
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    for outputs in (value["segments"][0]["outputs"], value["segments"][1]["inputs"]):
        outputs[0]["dtype"] = "float16"
    path.write_text(json.dumps(value))
    with pytest.raises(UnsupportedModelError, match=r"segment_0\.onnx gives .*'FLOAT'.*'float16'"):
        build_engines(bundle)


def test_a_file_of_fixed_batch_in_a_bundle_of_many_is_refused(tmp_path, install):
    install()
    write_bundle(tmp_path, batch=(1, 1))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "batch": [1, 2]}))
    with pytest.raises(UnsupportedModelError, match="in batches of 1 to 2"):
        build_engines(tmp_path)


def test_tensorrt_that_does_not_start_is_a_sentence(bundle, install):
    install().fails = "start"
    with pytest.raises(ToolchainError, match=r"tensorrt 10\.3\.0\.30 could not start \(factory"):
        build_engines(bundle)


def test_cuda_is_probed_before_tensorrt_is_touched(bundle, install, monkeypatch):
    fake = install()
    fake.fails = "start"

    def no_gpu():
        raise ToolchainError("no GPU here")

    monkeypatch.setattr(cuda, "probe_cuda", no_gpu)
    with pytest.raises(ToolchainError, match="no GPU here"):
        build_engines(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builder": "tensorrt-lean"}, "builder is 'tensorrt-lean'; expected one of auto"),
        ({"workspace_mib": 0}, "workspace is 0 MiB"),
        ({"optimization_level": 6}, "optimization level is 6; expected 0 to 5"),
    ],
)
def test_options_out_of_range(bundle, options, message):
    with pytest.raises(UserInputError, match=message):
        build_engines(bundle, **options)


def test_without_any_builder_the_way_out_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(engine_builder, "find_trtexec", lambda **_: None)
    with pytest.raises(ToolchainError, match=r"tensorrt is empty; trtexec is not .* JetPack"):
        build_engines(bundle)


def test_two_builds_at_once_do_not_meet(bundle, install):
    install()
    with engine_builder._alone_in(bundle), pytest.raises(UserInputError, match="another process"):
        build_engines(bundle)
    build_engines(bundle)


# A killed build ----------------------------------------------------------------------------------

STEPS = (
    (os, "fsync"),
    (os, "chmod"),
    (os, "replace"),
    (Path, "unlink"),
    (Path, "write_bytes"),
    (Path, "write_text"),
)


def build_until(bundle: Path, last_step: int) -> int:
    """Build in a process of its own that dies, as by SIGKILL, at its n-th step on the disk.

    Returns:
        9 when it died, 0 when it was done before that step.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    taken = 0

    def dying(function):
        def step(*args, **kwargs):
            nonlocal taken
            taken += 1
            if taken == last_step:
                os._exit(9)
            return function(*args, **kwargs)

        return step

    try:
        for owner, name in STEPS:
            setattr(owner, name, dying(getattr(owner, name)))
        build_engines(bundle, force=True)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("rebuilds", [False, True], ids=["first build", "rebuild"])
def test_a_build_killed_at_any_step_never_leaves_a_set_that_lies(
    bundle, install, tmp_path, rebuilds
):
    fake = install()
    former = build_engines(bundle) if rebuilds else None
    left = []
    for step in range(1, 100):
        fake.builds[:] = [None]  # so that the engines of a rebuild differ from the former ones
        copy = shutil.copytree(bundle, tmp_path / f"killed at {step}")
        ended = build_until(copy, step)
        if ended == 0:
            break
        assert ended == 9
        # Reading raises where an engine is not the one that the set names.
        left.append(engines_of(copy) if (copy / ENGINES).exists() else None)
        assert build_engines(copy, force=True) == engines_of(copy)
        assert not list(copy.glob(".*"))
    new = engines_of(copy)
    assert len(left) > 15
    assert set(left) == {former, None, new}
    assert left == sorted(left, key=[former, None, new].index)  # never back, never twice
    assert new != former
