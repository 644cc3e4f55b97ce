"""The model repository for Triton: its files, their configuration, and that it is whole or not."""

import re
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from compress.errors import UserInputError
from compress.export.triton import write_triton
from compress.files import sha256_of
from compress.runtime.cuda import DeviceInfo
from compress.runtime.engines import EngineFile, EngineSet, write_engines
from tests.export.triton_bundles import BATCH, CLASSES, SHAPE, write_bundle
from tests.export.triton_server import read_config, shape_in_file, type_of

OLD_BUNDLE = Path(__file__).parents[1] / "runtime" / "format_1.bundle"


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def add_engines(bundle, manifest, *, builder="tensorrt"):
    files = []
    for segment in manifest.segments:
        path = bundle / f"{segment.stem}.engine"
        path.write_bytes(f"engine of {segment.file}".encode())
        files.append(EngineFile(path.name, sha256_of(path), segment.sha256))
    write_engines(EngineSet(builder, "10.3.0.30", DeviceInfo("Orin", "8.7"), tuple(files)), bundle)


# ------------------------------------------------------------------------------ structure


def test_the_repository_holds_a_model_a_segment_and_the_dispatcher(bundle, tmp_path):
    repository = tmp_path / "models"
    written = write_triton(bundle, repository)
    expected = {
        *("tiny/config.pbtxt", "tiny/1/model.py"),
        *(
            f"tiny_segment_{i}/{each}"
            for i in range(3)
            for each in ("config.pbtxt", "1/model.onnx")
        ),
    }
    assert {str(path.relative_to(repository)) for path in written} == expected
    found = {str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()}
    assert found == expected
    assert {each.name for each in tmp_path.iterdir()} == {"bundle", "models"}  # nothing left over
    for number in range(3):
        copy = repository / f"tiny_segment_{number}" / "1" / "model.onnx"
        assert copy.read_bytes() == (bundle / f"segment_{number}.onnx").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_the_configuration_of_a_segment_says_what_its_file_takes_and_gives(tmp_path, batch, dtype):
    write_bundle(tmp_path / "bundle", batch=batch, dtype=dtype)
    write_triton(tmp_path / "bundle", tmp_path / "models")
    names = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16"}
    for number in range(3):
        config = read_config(tmp_path / "models" / f"tiny_segment_{number}")
        graph = onnx.load(tmp_path / "bundle" / f"segment_{number}.onnx").graph
        assert config.name == f"tiny_segment_{number}"
        assert (config.backend, config.platform) == ("onnxruntime", "")
        assert config.max_batch_size == (batch if batch > 1 else 0)
        for ios, values in ((config.input, graph.input), (config.output, graph.output)):
            assert [io.name for io in ios] == [value.name for value in values]
            for io, value in zip(ios, values, strict=True):
                tensor = value.type.tensor_type
                dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
                assert shape_in_file(config, io) == dims
                assert list(io.dims), "the server refuses empty dims"
                assert type_of(io) == names[tensor.elem_type]


@pytest.mark.parametrize(("batch", "one"), [(1, [1]), (BATCH, [])])
def test_the_dispatcher_takes_images_and_gives_logits_and_exits(tmp_path, batch, one):
    write_bundle(tmp_path / "bundle", batch=batch, thresholds=(0.1, 1 / 3))
    write_triton(tmp_path / "bundle", tmp_path / "models")
    config = read_config(tmp_path / "models" / "tiny")
    assert (config.name, config.backend, config.platform) == ("tiny", "python", "")
    assert [(io.name, list(io.dims), type_of(io)) for io in (*config.input, *config.output)] == [
        ("image", [*one, *SHAPE], "TYPE_FP32"),
        ("logits", [*one, CLASSES], "TYPE_FP32"),
        ("exit", [*one, 1], "TYPE_INT32"),
    ]
    values = {key: each.string_value for key, each in config.parameters.items()}
    assert [float(each) for each in values["thresholds"].split(",")] == [0.1, 1 / 3]
    assert values["segments"] == "tiny_segment_0,tiny_segment_1,tiny_segment_2"
    assert values["takes"] == "image;hidden_0;hidden_1"
    assert values["gives"] == "hidden_0;hidden_1;"
    assert values["FORCE_CPU_ONLY_INPUT_TENSORS"] == "no"
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, group.Kind.Value("KIND_CPU"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("GFNet dynn/12", "GFNet_dynn_12"), ("../..", "network"), ('a" }', "a"), ("é", "network")],
)
def test_a_name_of_any_kind_becomes_a_plain_folder(tmp_path, name, folder):
    write_bundle(tmp_path / "bundle", thresholds=(), name=name)
    write_triton(tmp_path / "bundle", tmp_path / "models")
    assert {each.name for each in (tmp_path / "models").iterdir()} == {
        folder,
        f"{folder}_segment_0",
    }
    assert read_config(tmp_path / "models" / folder).name == folder


def test_bundles_of_the_format_before_are_refused(tmp_path):
    with pytest.raises(UserInputError, match=r"segment_0.onnx calls hidden_0 'hidden'.*again"):
        write_triton(OLD_BUNDLE, tmp_path / "models")
    assert not (tmp_path / "models").exists()


# ------------------------------------------------------------------------------ engines


def test_engines_become_plans_and_say_which_server_can_load_them(tmp_path):
    manifest = write_bundle(tmp_path / "bundle")
    add_engines(tmp_path / "bundle", manifest)
    write_triton(tmp_path / "bundle", tmp_path / "models", platform="tensorrt")
    for number in range(3):
        folder = tmp_path / "models" / f"tiny_segment_{number}"
        config = read_config(folder)
        assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
        assert config.instance_group[0].kind == config.instance_group[0].Kind.Value("KIND_GPU")
        assert (folder / "1" / "model.plan").read_bytes() == b"engine of segment_%d.onnx" % number
        assert not (folder / "1" / "model.onnx").exists()
        assert re.search(r"^# .*10\.3\.0\.30.*Orin.*8\.7", (folder / "config.pbtxt").read_text())


def test_no_engines_no_plans(bundle, tmp_path):
    with pytest.raises(UserInputError, match="build_engines"):
        write_triton(bundle, tmp_path / "models", platform="tensorrt")
    assert not (tmp_path / "models").exists()


def test_engines_of_tensorrt_rtx_are_not_what_triton_loads(tmp_path):
    manifest = write_bundle(tmp_path / "bundle")
    add_engines(tmp_path / "bundle", manifest, builder="tensorrt_rtx")
    with pytest.raises(UserInputError, match=r"built by tensorrt_rtx.*--builder tensorrt"):
        write_triton(tmp_path / "bundle", tmp_path / "models", platform="tensorrt")


def test_an_unknown_platform_is_refused(bundle, tmp_path):
    with pytest.raises(UserInputError, match=r"'openvino'.*onnxruntime, tensorrt"):
        write_triton(bundle, tmp_path / "models", platform="openvino")


# ------------------------------------------------------------------------------ whole or nothing


def test_an_altered_bundle_is_not_served(bundle, tmp_path):
    with open(bundle / "segment_1.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserInputError, match=r"segment_1.onnx has sha256"):
        write_triton(bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_existing_repository_is_kept_unless_forced(bundle, tmp_path):
    write_triton(bundle, tmp_path / "models")
    stale = tmp_path / "models" / "tiny_segment_7"
    stale.mkdir()
    with pytest.raises(UserInputError, match=r"exists.*--force"):
        write_triton(bundle, tmp_path / "models")
    assert stale.exists()
    write_triton(bundle, tmp_path / "models", force=True)
    assert not stale.exists()
    assert read_config(tmp_path / "models" / "tiny").name == "tiny"


def test_force_does_not_delete_models_of_others(bundle, tmp_path):
    other = tmp_path / "models" / "resnet"
    other.mkdir(parents=True)
    with pytest.raises(UserInputError, match="also holds resnet"):
        write_triton(bundle, tmp_path / "models", force=True)
    assert other.exists()


def test_a_file_in_the_place_of_the_repository_is_kept(bundle, tmp_path):
    (tmp_path / "models").write_text("mine")
    with pytest.raises(UserInputError, match="is a file"):
        write_triton(bundle, tmp_path / "models", force=True)
    assert (tmp_path / "models").read_text() == "mine"


@pytest.mark.parametrize("files", range(8))
def test_a_write_that_breaks_off_leaves_the_old_repository(bundle, tmp_path, monkeypatch, files):
    write_triton(bundle, tmp_path / "models")
    before = {p: p.read_bytes() for p in (tmp_path / "models").rglob("*") if p.is_file()}
    real, count = sys.modules["compress.files"].os.replace, []

    def replace(*args):
        count.append(args)
        if len(count) > files:
            raise OSError("disk full")
        real(*args)

    monkeypatch.setattr("compress.files.os.replace", replace)
    with pytest.raises(OSError, match="disk full"):
        write_triton(bundle, tmp_path / "models", force=True)
    assert {p: p.read_bytes() for p in (tmp_path / "models").rglob("*") if p.is_file()} == before
    assert {each.name for each in tmp_path.iterdir()} == {"bundle", "models"}
