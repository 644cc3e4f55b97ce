"""What `engines.json` says, and everything that it must not be believed about."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.errors import UserInputError
from compress.files import sha256_of
from compress.runtime.cuda import DeviceInfo
from compress.runtime.engines import (
    ENGINES,
    EngineFile,
    EngineSet,
    check_stamp,
    read_engines,
    write_engines,
)
from tests.runtime.tiny_bundle import write_bundle

ORIN = DeviceInfo("Orin", "8.7", multiprocessors=16, memory_gib=61.4, clock_mhz=1300)
AGAIN = r"build the engines again with: python -m compress\.build_engines --force .*bundle"


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose engines are a few bytes each."""
    bundle = tmp_path / "bundle"
    manifest = write_bundle(bundle)
    files = []
    for place, segment in enumerate(manifest.segments):
        path = bundle / f"segment_{place}.engine"
        path.write_bytes(b"engine" * (place + 1))
        files.append(EngineFile(path.name, sha256_of(path), segment.sha256))
    engines = EngineSet("tensorrt", "10.3.0.30", ORIN, tuple(files))
    write_engines(engines, bundle)
    return Bundle(bundle, manifest, engines)


class Bundle:
    def __init__(self, path: Path, manifest, engines: EngineSet) -> None:
        self.path, self.manifest, self.engines = path, manifest, engines
        self.file = path / ENGINES

    def read(self, **options) -> EngineSet:
        return read_engines(self.path, self.manifest, **options)

    def change(self, **fields) -> None:
        self.file.write_text(json.dumps({**json.loads(self.file.read_text()), **fields}))

    def change_segment(self, **fields) -> None:
        first, *others = json.loads(self.file.read_text())["segments"]
        self.change(segments=[{**first, **fields}, *others])


def test_what_is_written_is_read(bundle):
    assert bundle.read() == bundle.engines
    assert json.loads(bundle.file.read_text())["format"] == "compress.engines/1"


def test_engines_that_need_no_gpu_have_no_device(bundle):
    engines = replace(bundle.engines, builder="tensorrt_rtx", device=None)
    write_engines(engines, bundle.path)
    assert bundle.read() == engines


def test_a_bundle_without_engines_names_the_command(bundle):
    bundle.file.unlink()
    message = r"has no engines\.json; build its engines with: python -m compress\.build_engines /"
    with pytest.raises(UserInputError, match=message):
        bundle.read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"{", "Expecting property name", id="cut off"),
        pytest.param(b"[]", "list in place of an object", id="a list"),
        pytest.param(b"\xff\xfe", "codec can't decode", id="not text"),
        pytest.param(b"[" * 100_000, "", id="deep nesting"),
        pytest.param(b" " * (2 << 20), "more than a list of engines has", id="huge"),
        pytest.param(b'{"format": "compress.engines/1"}', "'builder' is missing", id="empty"),
    ],
)
def test_a_damaged_file_is_a_sentence(bundle, content, message):
    bundle.file.write_bytes(content)
    with pytest.raises(UserInputError, match=rf"cannot be used \(.*{message}.*{AGAIN}"):
        bundle.read()


def test_an_empty_file_is_a_sentence(bundle):
    bundle.file.write_bytes(b"")
    with pytest.raises(UserInputError, match="is empty"):
        bundle.read()


def test_a_later_version_is_a_sentence(bundle):
    bundle.change(format="compress.engines/2")
    with pytest.raises(UserInputError, match=rf"format 'compress.engines/2'.*{AGAIN}"):
        bundle.read()


@pytest.mark.parametrize(
    "fields",
    [
        {"builder": "tensorflow"},
        {"builder": ["tensorrt"]},
        {"tensorrt_version": "newest"},
        {"tensorrt_version": 10.3},
        {"tensorrt_version": "10.3\n"},
        {"compute_capability": 8.7},
        {"compute_capability": "8.7; rm"},
        {"device_name": "Orin\x1b[2J"},
        {"device_name": ""},
        {"device_name": "O" * 300},
        {"device_name": None},
        {"multiprocessors": 0},
        {"multiprocessors": "16"},
        {"memory_gib": -1},
        {"memory_gib": 1e300},
        {"clock_mhz": 0.5},
        {"segments": []},
        {"segments": {}},
        {"segments": ["segment_0.engine"]},
    ],
    ids=str,
)
def test_fields_out_of_range(bundle, fields):
    bundle.change(**fields)
    with pytest.raises(UserInputError, match=rf"cannot be used \(.*{AGAIN}"):
        bundle.read()


@pytest.mark.parametrize(
    "fields",
    [
        {"file": "../segment_0.engine"},
        {"file": "/etc/passwd.engine"},
        {"file": ".engine"},
        {"file": "segment_0.onnx"},
        {"file": "a\nb.engine"},
        {"file": None},
        {"file": "segment_1.engine"},
        {"sha256": "0"},
        {"sha256": "G" * 64},
        {"onnx_sha256": 7},
    ],
    ids=str,
)
def test_segments_out_of_range(bundle, fields):
    bundle.change_segment(**fields)
    with pytest.raises(UserInputError, match=rf"cannot be used \(.*{AGAIN}"):
        bundle.read()


def test_what_a_reader_would_refuse_is_not_written(bundle):
    with pytest.raises(ValueError, match="builder"):
        write_engines(replace(bundle.engines, builder="mine"), bundle.path)
    assert bundle.read() == bundle.engines


def test_an_altered_engine(bundle):
    (bundle.path / "segment_1.engine").write_bytes(b"something else")
    with pytest.raises(UserInputError, match=rf"segment_1\.engine has sha256 .*{AGAIN}"):
        bundle.read()
    assert bundle.read(check_files=False) == bundle.engines


def test_a_missing_engine(bundle):
    (bundle.path / "segment_1.engine").unlink()
    with pytest.raises(UserInputError, match=rf"segment_1\.engine is missing; {AGAIN}"):
        bundle.read()


def test_engines_of_another_export(bundle):
    bundle.change_segment(onnx_sha256="0" * 64)
    message = rf"segment_0\.engine .* another file than segment_0\.onnx is now; {AGAIN}"
    with pytest.raises(UserInputError, match=message):
        bundle.read()


def test_engines_of_another_number_of_segments(bundle):
    write_engines(replace(bundle.engines, segments=bundle.engines.segments[:1]), bundle.path)
    with pytest.raises(UserInputError, match=rf"has 1 engines for 2 segments; {AGAIN}"):
        bundle.read()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(
        ["format", "builder", "tensorrt_version", "compute_capability", "device_name", "segments"]
    ),
    value=VALUES,
    inner=st.sampled_from(["file", "sha256", "onnx_sha256", None]),
)
def test_whatever_stands_there_ends_in_a_sentence_or_a_set(bundle, name, value, inner):
    write_engines(bundle.engines, bundle.path)
    if inner is None:
        bundle.change(**{name: value})
    else:
        bundle.change_segment(**{inner: value})
    try:
        found = bundle.read()
    except UserInputError as err:
        assert "compress.build_engines" in str(err)  # noqa: PT017  # a set is right too
    else:
        assert found.segments == bundle.engines.segments


HERE = {
    "builder": "tensorrt",
    "tensorrt_version": "10.3.0.30",
    "device": ORIN,
}


@pytest.mark.parametrize(
    ("stamp", "fits"),
    [
        pytest.param({}, True, id="the same"),
        pytest.param({"tensorrt_version": "10.3.0"}, True, id="as trtexec tells it"),
        pytest.param({"tensorrt_version": "10.3.0.31"}, False, id="another build"),
        pytest.param({"tensorrt_version": "10.3.1"}, False, id="another patch"),
        pytest.param({"tensorrt_version": "10.3"}, False, id="too short to tell"),
        pytest.param({"builder": "tensorrt_rtx"}, False, id="another builder"),
        pytest.param({"device": replace(ORIN, compute_capability="7.2")}, False, id="generation"),
        pytest.param({"device": replace(ORIN, name="Xavier")}, False, id="another GPU"),
        pytest.param({"device": DeviceInfo("Orin", "8.7", 8, 7.4, 1020)}, False, id="Orin Nano"),
        pytest.param({"device": replace(ORIN, multiprocessors=14)}, False, id="parts are off"),
        pytest.param({"device": DeviceInfo("Orin", "8.7", 16, 30.0, 1300)}, False, id="half of it"),
        pytest.param({"device": replace(ORIN, memory_gib=60.9)}, True, id="another system"),
        pytest.param({"device": DeviceInfo("Orin", "8.7")}, True, id="of an earlier version"),
        pytest.param({"device": None}, True, id="every GPU"),
    ],
)
def test_the_stamp_is_for_this_device(bundle, stamp, fits):
    engines = replace(bundle.engines, **stamp)
    if fits:
        check_stamp(engines, **HERE)
    else:
        with pytest.raises(UserInputError, match=r"were built for .*, this device has .* --force"):
            check_stamp(engines, **HERE)


def test_the_message_tells_both_devices(bundle):
    message = (
        r"built for GPU Orin \(8\.7, 16 multiprocessors, 61\.4 GiB\), this device has GPU Orin "
        r"\(8\.7, 8 multiprocessors, 7\.4 GiB\); build them here with: "
    )
    nano = DeviceInfo("Orin", "8.7", 8, 7.4, 1020)
    with pytest.raises(UserInputError, match=message):
        check_stamp(bundle.engines, **{**HERE, "device": nano})


@pytest.mark.parametrize(("clock_mhz", "is_told"), [(1300, False), (1250, False), (624, True)])
def test_another_power_mode_is_told_and_no_error(bundle, caplog, clock_mhz, is_told):
    check_stamp(bundle.engines, **{**HERE, "device": replace(ORIN, clock_mhz=clock_mhz)})
    assert ("this device has 624 now" in caplog.text) == is_told


def test_engines_of_an_earlier_version_are_read(bundle):
    value = json.loads(bundle.file.read_text())
    for name in ("multiprocessors", "memory_gib", "clock_mhz"):
        del value[name]
    bundle.file.write_text(json.dumps(value))
    assert bundle.read().device == DeviceInfo("Orin", "8.7")
