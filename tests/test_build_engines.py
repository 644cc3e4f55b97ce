"""The door of engines: with a program in place of trtexec, and with NVIDIA's real builder."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.build_engines import main
from compress.errors import ToolchainError
from compress.export.quantise import quantised
from compress.export.targets import target
from compress.runtime import cuda, trtexec
from compress.runtime.engines import ENGINES, read_engines
from compress.runtime.manifest import read_manifest, write_manifest
from compress.runtime.trtexec import find_trtexec
from tests.export.triton_bundles import save_segment
from tests.runtime import crossing_bundle
from tests.runtime.tiny_bundle import write_bundle
from tools.tensorrt_fixtures import FOLDER, is_installed

RTX_NOTE = target("tensorrt-rtx").int8_note
ROOT = Path(__file__).parents[1]
RTX = {"rtx-1.4": "1.4.0.76", "rtx-1.7": "1.7.1.116"}

# What the first line and the options of three generations of trtexec look like.
BANNERS = {"8.5": "v8502", "8.6": "v8602", "10.3": "v100300] [b26", "11.1": "v11.1.0.106] [b48"}
WEAK = "--fp16 --int8 --precisionConstraints --layerPrecisions --layerOutputTypes"
OPTIONS = {
    "8.5": f"{WEAK} --buildOnly --preview",
    "8.6": f"{WEAK} --skipInference --builderOptimizationLevel --preview",
    "10.3": "--fp16 --int8 --stronglyTyped --skipInference --builderOptimizationLevel",
    "11.1": "--stronglyTyped --skipInference --builderOptimizationLevel",
}

KEPT = {"--precisionConstraints": "obey", "--layerOutputTypes": "the_logits:fp32"}
PROGRAM = """#!{python}
import hashlib, json, pathlib, sys

print("&&&& RUNNING TensorRT.trtexec [TensorRT {banner}] # trtexec")
known = "--onnx --saveEngine --timingCacheFile --profilingVerbosity --memPoolSize --minShapes "
known = (known + "--optShapes --maxShapes {options}").split()
if "--help" in sys.argv:
    print("=== Build Options ===")
    for option in known:
        print("  " + option.ljust(30) + "is not the same as --fp16 or --best")
        if option == "--preview" and "{banner}" != "v8502":
            print("       profileSharing0806 is a preview feature")
    sys.exit(0)
given = dict((each + "=").split("=", 1) for each in sys.argv[1:])
for option in given:
    if option not in known:
        print("[10/10/2026-10:10:10] [E] Unknown option: " + option)
        sys.exit(1)
content = pathlib.Path(given["--onnx"].rstrip("=")).read_bytes()
if b"DFT" in content:
    print("[10/10/2026-10:10:10] [E] [TRT] In node 9 (DFT): UNSUPPORTED_NODE")
    print("[10/10/2026-10:10:10] [E] Failed to parse onnx file")
    sys.exit(1)
engine = hashlib.sha256(content).digest()
pathlib.Path(given["--saveEngine"].rstrip("=")).write_bytes(engine if {works} else b"")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a trtexec on an otherwise empty PATH, and let there be a GPU and no Python module."""

    def put(version: str, *, works: bool = True, program: str = PROGRAM) -> Path:
        path = tmp_path / "bin" / "trtexec"
        path.parent.mkdir(exist_ok=True)
        words = {"banner": BANNERS[version], "options": OPTIONS[version], "works": works}
        path.write_text(program.format(python=sys.executable, **words))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))
        return path

    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(trtexec, "BESIDE_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(cuda, "probe_cuda", lambda: cuda.DeviceInfo("Orin", "8.7"))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    return put


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("version", "stamp"),
    [("8.5", "8.5.2"), ("8.6", "8.6.2"), ("10.3", "10.3.0"), ("11.1", "11.1.0.106")],
)
def test_trtexec_builds_and_the_engines_are_stamped(bundle, install, capsys, version, stamp):
    install(version)
    code, out, err = run(capsys, bundle, "--workspace-mib", 64, "--json")
    assert code == 0, err
    engines = read_engines(bundle, read_manifest(bundle))
    assert json.loads(out)["tensorrt_version"] == engines.tensorrt_version == stamp
    assert (engines.builder, engines.device) == ("tensorrt", cuda.DeviceInfo("Orin", "8.7"))
    for engine in engines.segments:
        assert (bundle / engine.file).read_bytes().hex() == engine.onnx_sha256


def test_text_lists_the_engines(bundle, install, capsys):
    install("8.5")
    code, out, _ = run(capsys, bundle)
    assert code == 0
    first, *lines = out.splitlines()
    assert first == "tensorrt 8.5.2, for Orin (8.7)"
    assert [line.split() for line in lines] == [
        ["segment_0.engine", "0.0", "MiB"],
        ["segment_1.engine", "0.0", "MiB"],
    ]


def test_a_second_call_leaves_what_fits(bundle, install, capsys):
    install("8.5")
    run(capsys, bundle)
    before = (bundle / ENGINES).stat().st_mtime_ns
    code, _, _ = run(capsys, bundle)
    assert code == 0
    assert (bundle / ENGINES).stat().st_mtime_ns == before
    install("10.3")
    code, _, err = run(capsys, bundle)
    assert code == 3
    assert "built for tensorrt 8.5.2, this device has tensorrt 10.3.0" in err


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("8.5", {"--fp16": "", "--buildOnly": "", **KEPT}),
        ("8.6", {"--fp16": "", "--skipInference": "", "--preview": "+profileSharing0806", **KEPT}),
        ("10.3", {"--stronglyTyped": "", "--skipInference": ""}),
        ("11.1", {"--stronglyTyped": "", "--skipInference": ""}),
    ],
)
def test_printed_commands_use_what_the_installed_trtexec_knows(
    tmp_path, install, capsys, version, expected
):
    bundle = tmp_path / "my bundle"
    write_bundle(bundle, dtype="float16")
    program = install(version)
    code, out, _ = run(capsys, bundle, "--print-commands", "--workspace-mib", 512)
    assert code == 0
    lines = [shlex.split(line) for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(program)] * 2
    options = [dict([*each.split("=", 1), ""][:2] for each in line[1:]) for line in lines]
    assert options[1] == {
        "--onnx": f"{bundle}/segment_1.onnx",
        "--saveEngine": f"{bundle}/segment_1.engine",
        "--timingCacheFile": f"{bundle}/timing.cache",
        "--profilingVerbosity": "detailed",
        "--memPoolSize": "workspace:512",
        "--minShapes": "hidden_0:1x16x8",
        "--optShapes": "hidden_0:4x16x8",
        "--maxShapes": "hidden_0:4x16x8",
        **expected,
    }
    assert options[0]["--maxShapes"] == "image:4x3x16x16"
    if version in ("8.5", "8.6"):  # the gate; a cast takes halves, TopK gives places too
        kept = [f"the_{name}:fp32" for name in ("Softmax_12", "MatMul_14", "Sigmoid_15", "gate")]
        assert options[0]["--layerOutputTypes"].split(",") == ["the_logits:fp32", *kept]
        assert options[0]["--layerPrecisions"].split(",") == kept[:3]
    assert not (bundle / ENGINES).exists()


def test_printed_commands_as_json(bundle, install, capsys):
    install("10.3")
    code, out, _ = run(capsys, bundle, "--print-commands", "--json")
    assert code == 0
    assert len(json.loads(out)["commands"]) == 2


def test_the_printed_commands_run(bundle, install, capsys):
    install("10.3")
    _, out, _ = run(capsys, bundle, "--print-commands")
    for line in out.splitlines():
        subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256((bundle / "segment_0.onnx").read_bytes()).digest()
    assert (bundle / "segment_0.engine").read_bytes() == found


def test_int8_and_levels_on_trtexec_of_tensorrt_8(bundle, install, caplog):
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"fp32"', '"int8"'))
    install("8.5")
    commands = find_trtexec(optimization_level=5).commands(bundle, read_manifest(bundle))
    assert all("--int8" in each and "--fp16" not in each for each in commands)
    assert not any("--builderOptimizationLevel" in each for each in commands)
    assert "trtexec 8.5.2 has no optimization level" in caplog.text
    install("8.6")
    commands = find_trtexec(optimization_level=5).commands(bundle, read_manifest(bundle))
    assert all("--builderOptimizationLevel=5" in each for each in commands)


def test_a_fixed_batch_gives_trtexec_no_shapes(tmp_path, install):
    manifest = write_bundle(tmp_path, batch=(1, 1))
    install("10.3")
    assert not any("Shapes" in each for each in find_trtexec().commands(tmp_path, manifest))


def test_trtexec_is_told_the_range_of_every_input(tmp_path, install):
    manifest = crossing_bundle.write_bundle(tmp_path)
    install("10.3")
    last = find_trtexec().commands(tmp_path, manifest)[-1]
    assert "--minShapes=hidden_0:1x8,hidden_3:1,hidden_4:1x8 " in last
    assert "--maxShapes=hidden_0:8x8,hidden_3:8,hidden_4:8x8" in last


@pytest.mark.parametrize(
    ("trouble", "code", "message"),
    [
        ({"extra": "DFT"}, 3, r"refuses segment_1.onnx: [TRT] In node 9 (DFT): UNSUPPORTED_NODE"),
        ({"works": False}, 4, "could not build the engine of segment_0.onnx (exit code 0"),
    ],
)
def test_what_trtexec_cannot_build_is_a_sentence(tmp_path, install, capsys, trouble, code, message):
    bundle = tmp_path / "bundle"
    write_bundle(bundle, extra=trouble.get("extra", ""))
    install("10.3", works=trouble.get("works", True))
    found, _, err = run(capsys, bundle)
    assert found == code
    assert message in err.splitlines()[-1]
    assert not list(bundle.glob("*.engine*"))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("#!{python}\nprint('hello')", "does not tell its version"),
        ("#!/nowhere/python\n", "does not start"),
    ],
)
def test_a_program_that_is_no_trtexec(install, program, message):
    install("8.5", program=program)
    with pytest.raises(ToolchainError, match=message):
        find_trtexec()


def test_without_any_builder_the_code_is_4(bundle, install, capsys):
    code, _, err = run(capsys, bundle)
    assert code == 4
    assert "no builder of engines is installed" in err
    assert "--system-site-packages" in err
    code, _, err = run(capsys, bundle, "--print-commands")
    assert code == 4
    assert "trtexec is not found on PATH" in err


def test_a_folder_that_is_no_bundle(tmp_path, capsys):
    code, _, err = run(capsys, tmp_path / "nothing")
    assert code == 3
    assert "is not a folder" in err


# NVIDIA's real builder and parser, which need no GPU


def build_for_real(version: str, bundle: Path, *options: str):
    """Run the door in a process that has one version of TensorRT-RTX."""
    assert is_installed(FOLDER, version), (
        f"{FOLDER / version} is not there or is of another Python; "
        "run: python tools/tensorrt_fixtures.py"
    )
    arguments = [str(bundle), "--builder", "tensorrt-rtx", "--json", *options]
    return subprocess.run(
        [sys.executable, "-m", "compress.build_engines", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(FOLDER / version)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("version", RTX)
@pytest.mark.parametrize(("dtype", "batch"), [("float32", (1, 4)), ("float16", (1, 1))])
def test_real_engines(tmp_path, version, dtype, batch):
    manifest = write_bundle(tmp_path, dtype, batch)
    done = build_for_real(version, tmp_path)
    assert done.returncode == 0, done.stderr
    engines = read_engines(tmp_path, manifest)
    written = json.loads((tmp_path / ENGINES).read_text())
    assert len(written.pop("mark")) == 64
    schema = "compress.build_engines/1"
    assert json.loads(done.stdout) == {"schema": schema, **written, "self_test": None}
    assert engines.is_ours
    assert (engines.builder, engines.tensorrt_version) == ("tensorrt_rtx", RTX[version])
    assert engines.device is None
    assert all((tmp_path / engine.file).stat().st_size > 10_000 for engine in engines.segments)
    assert "Warning" not in done.stderr
    assert "rror" not in done.stderr


def in_int8(bundle: Path) -> None:
    """Quantise the first segment for real."""
    write_bundle(bundle)
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    graph = onnx.load(bundle / "segment_0.onnx")
    save_segment(quantised(graph, [{"image": images}], crossing=["hidden_0"]), bundle, 0)
    manifest = read_manifest(bundle)
    first = replace(manifest.segments[0], precision="int8")
    write_manifest(replace(manifest, segments=(first, *manifest.segments[1:])), bundle)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "builds"), [("rtx-1.4", False), ("rtx-1.7", True)])
def test_int8_is_built_where_the_target_says_so(tmp_path, version, builds):
    in_int8(tmp_path)
    done = build_for_real(version, tmp_path)
    assert (done.returncode == 0) == builds, done.stderr
    assert "1.4 reads int8 segments and builds no engine of them; 1.7 does" in RTX_NOTE
    if not builds:
        assert done.returncode == 4
        assert done.stderr.splitlines()[-1].endswith("export with --precision fp16")


@pytest.mark.slow
def test_real_engines_of_another_version_are_left_until_forced(tmp_path):
    write_bundle(tmp_path)
    assert build_for_real("rtx-1.4", tmp_path).returncode == 0
    again = build_for_real("rtx-1.4", tmp_path)
    assert "stay as they are" in again.stderr
    foreign = build_for_real("rtx-1.7", tmp_path)
    assert foreign.returncode == 3
    assert (
        "built for tensorrt_rtx 1.4.0.76, this device has tensorrt_rtx 1.7.1.116" in foreign.stderr
    )
    forced = build_for_real("rtx-1.7", tmp_path, "--force", "--workspace-mib", "256")
    assert json.loads(forced.stdout)["tensorrt_version"] == "1.7.1.116"


@pytest.mark.slow
@pytest.mark.parametrize("version", RTX)
def test_the_real_parsers_refusal_names_the_node(tmp_path, version):
    write_bundle(tmp_path, extra="DFT")
    done = build_for_real(version, tmp_path)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert "error: TensorRT's parser refuses segment_1.onnx: node the_DFT_0 (DFT): " in last
    assert not (tmp_path / ENGINES).exists()
    assert not list(tmp_path.glob("*.engine"))


@pytest.mark.slow
@pytest.mark.parametrize("version", RTX)
def test_the_real_parser_finds_what_the_manifest_does_not_say(tmp_path, version):
    write_bundle(tmp_path)
    path = tmp_path / "manifest.json"
    value = json.loads(path.read_text())
    value["classes"].append("another")
    for segment in value["segments"]:
        logits = next(each for each in segment["outputs"] if each["name"] == "logits")
        logits["shape"] = [5]
    path.write_text(json.dumps(value))
    done = build_for_real(version, tmp_path)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert "segment_0.onnx gives" in last
    assert "'logits': ('FLOAT', (-1, 4))" in last
