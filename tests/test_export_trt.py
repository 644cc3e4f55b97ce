"""The door, and the way of a user: checkpoint, bundle, engines, pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.checkpoint import save
from compress.export_trt import main
from compress.models.gfnet import gfnet
from compress.models.gfnet_dynn import GFNetDynn, gfnet_with_exits
from compress.runtime.manifest import read_manifest
from tools.tensorrt_fixtures import FOLDER, is_installed

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = GFNetDynn(image_size=8, patch_size=4, width=8, depth=2, num_classes=3, exits=[0])
    path = tmp_path_factory.mktemp("runs") / "dynn.pth"
    save(model, path)
    return path


def run(capsys, *arguments):
    code = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_without_a_checkpoint_the_newest_one_is_taken_and_named(
    checkpoint, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dynn.pth").write_bytes(checkpoint.read_bytes())
    code, out, err = run(capsys, "--split-exits", "--thresholds", "0.5", "--triton", "models")
    assert code == 0, err
    assert "checkpoint: runs/dynn.pth" in err
    assert out.splitlines()[0] == "gfnet_dynn_2_8 for jetpack6.2 (opset 18), batch 1"
    assert "python -m compress.build_engines dynn.bundle" in out
    manifest = read_manifest(tmp_path / "runs" / "dynn.bundle")
    assert manifest.thresholds == [0.5]
    assert (tmp_path / "models" / "gfnet_dynn_2_8" / "1" / "model.py").exists()


def test_json_is_one_object(checkpoint, capsys, tmp_path):
    code, out, err = run(
        capsys, "--split-exits", "--json", "-q", "-o", tmp_path / "b", "--exits", "0", checkpoint
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["schema"] == "compress.export/1"
    assert report["manifest"]["provenance"]["checkpoint"] == "dynn.pth"
    assert report["manifest"]["segments"][0]["threshold"] == 0.5  # told by a note


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["nowhere.pth"], 3, "does not exist", id="missing"),
        pytest.param(
            ["--split-exits", "--exits", "0,", "@"], 3, "'0,'; expected blocks", id="exits"
        ),
        pytest.param(
            ["--split-exits", "--exits", "layer1.0", "@"],
            3,
            "behind layer1.0; expected some of 0",
            id="no-such-exit",
        ),
        pytest.param(["--exits", "0", "@"], 3, "given without --split-exits", id="unsplit"),
        pytest.param(["--target", "jetpack", "@"], 3, "jetpack", id="target"),
        pytest.param(["--batch", "2:4", "@"], 3, "--batch is '2:4'", id="batch"),
        pytest.param(["--split-exits", "--plan", "no.json", "@"], 3, "no.json", id="plan"),
        pytest.param(["--split-exits", "--precision", "int8", "@"], 3, "--data SPEC", id="int8"),
        pytest.param(["--split-exits", "--data", "mnist", "@"], 3, "'mnist'", id="data"),
    ],
)
def test_wrong_inputs_are_one_sentence(checkpoint, capsys, tmp_path, arguments, code, message):
    filled = [str(checkpoint) if each == "@" else each for each in arguments]
    found, out, err = run(capsys, *filled, "-o", tmp_path / "b")
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_builder_that_was_asked_for_must_be_there(checkpoint, capsys, tmp_path):
    code, _, err = run(
        capsys, "--split-exits", "--builder", "tensorrt", checkpoint, "-o", tmp_path / "b"
    )
    assert code == 4
    assert "tensorrt" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """GFNet-dynn 12-384 at 224, exits behind blocks 7, 8, 9: the network of the logs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("full")
    save(gfnet_with_exits(gfnet("gfnet_12_384", num_classes=45), [7, 8, 9]), folder / "dynn.pth")
    arguments = ["--split-exits", "--thresholds", "0.8", "--precision", "fp16"]
    assert main([*arguments, "-q", str(folder / "dynn.pth"), "-o", str(folder / "bundle")]) == 0
    return folder / "bundle"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["rtx-1.4", "rtx-1.7"])
def test_the_real_builder_takes_every_segment_of_a_full_size_network(full_size, version):
    """TensorRT's own builder, with the API of TensorRT 10 and of 11, on a machine without a GPU."""
    assert is_installed(FOLDER, version), "run: python tools/tensorrt_fixtures.py"
    command = [sys.executable, "-m", "compress.build_engines", str(full_size)]
    done = subprocess.run(
        [*command, "--builder", "tensorrt-rtx", "--force", "--json"],
        env={"PYTHONPATH": f"{FOLDER / version}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    engines = sorted(path.name for path in full_size.glob("*.engine"))
    assert engines == [f"segment_{i}.engine" for i in range(4)]
    weights = 2 * 16e6  # bytes of the network in half precision
    assert sum(path.stat().st_size for path in full_size.glob("*.engine")) > 0.9 * weights
