"""What goes to a device: the wheel, numpy, and one backend. No torch, no onnx, nothing else."""

import json
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.export.triton_bundles import THRESHOLDS, early_exit, images_with, write_bundle

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """An environment into which the wheel, numpy and onnxruntime were installed, and no more."""
    folder = tmp_path_factory.mktemp("device")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", "onnxruntime"], check=True)
    wheel = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder / "dist", source]
    subprocess.run(wheel, check=True)
    (built,) = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "--no-deps", built], check=True)
    return python


def run(device, cwd, *arguments):
    return subprocess.run(
        [device, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_bundle_runs_with_the_wheel_numpy_and_onnxruntime_alone(device, tmp_path):
    write_bundle(tmp_path / "tiny.bundle")
    images = images_with([[0, 0], [1, 0], [0, 1], [np.nan, 0.25]])
    np.save(tmp_path / "images.npy", images)
    script = (
        "import json, numpy, sys\n"
        "from compress.runtime.dispatcher import Dispatcher\n"
        "found = Dispatcher('tiny.bundle').run(numpy.load('images.npy'))\n"
        "heavy = {'torch', 'onnx', 'PIL', 'scipy', 'pydantic'} & set(sys.modules)\n"
        "print(json.dumps([found.exits.tolist(), found.logits.tolist(), sorted(heavy)]))\n"
    )
    done = run(device, tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    exits, logits, heavy = json.loads(done.stdout)
    wanted_logits, wanted_exits = early_exit(images, THRESHOLDS)
    assert exits == wanted_exits[:, 0].tolist()
    np.testing.assert_allclose(logits, wanted_logits, rtol=1e-5)
    assert heavy == []


@pytest.mark.slow
def test_the_doors_of_the_device_run_there(device, tmp_path):
    write_bundle(tmp_path / "tiny.bundle")
    np.save(tmp_path / "images.npy", images_with([[0, 0], [1, 0]]))
    done = run(
        device, tmp_path, "-m", "compress", "dispatch", "tiny.bundle", "images.npy", "--json"
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("exit") for line in lines[:2]] == [2, 0]
    done = run(device, tmp_path, "-m", "compress.build_engines", "tiny.bundle")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert "tensorrt" in done.stderr


@pytest.mark.slow
def test_the_doors_of_the_toolkit_say_what_they_need(device, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"not looked at")
    done = run(device, tmp_path, "-m", "compress.export_trt", "x.pth")
    assert done.returncode == 4
    assert "pip install 'early-exit-compress[toolkit]'" in done.stderr
    assert "Traceback" not in done.stderr
    found = run(device, tmp_path, "-m", "pip", "list", "--format", "json")
    names = {package["name"] for package in json.loads(found.stdout)}
    assert "torch" not in names
    assert names >= {"numpy", "onnxruntime", "early-exit-compress"}
