"""A full disk, a limit on the size of files, a read-only disk: one sentence, the old file there.

On a real file system of some KiB, where the tests may mount one.
"""

import re
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml

from compress import evaluate, run, slim
from compress.checkpoint import save
from compress.errors import DiskFullError, UserInputError
from compress.files import replacing, write_json, write_text
from compress.models import build
from compress.training.feature_cache import _allocated
from compress.training.state import Position, write_state
from tests.disks import make_read_only, small_disk
from tests.test_run import SMALL

KIB = 64
LARGE = torch.zeros(1 << 18)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", kib=KIB) as folder:
        yield folder


def network(width=8):
    return build("vgg", {"widths": [[width, width]], "hidden": [], "pooled": 1, "num_classes": 10})


def save_npz(path):
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, x=LARGE.numpy())


def save_npy(path):
    with replacing(path) as part, open(part, "wb") as file:
        np.save(file, LARGE.numpy())


WRITERS = {
    "text": ("old.txt", lambda path: write_text(path, "x" * (1 << 20))),
    "json": ("old.json", lambda path: write_json(path, ["x" * 100] * 10_000)),
    "torch": ("old.pth", lambda path: save(network(128), path)),
    "safetensors": ("old.safetensors", lambda path: save(network(128), path)),
    "resume point": (
        "state.pt",
        lambda path: write_state(path, identity={}, position=Position(), tensors={"x": LARGE}),
    ),
    "numpy archive": ("old.npz", save_npz),
    "numpy array": ("old.npy", save_npy),
    "features": ("old.npy", lambda path: _allocated(path, (1 << 10, 1 << 10))),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_a_full_disk(disk, name, write):
    path = disk / name
    path.write_text("old")
    with pytest.raises(DiskFullError) as told:
        write(path)
    assert re.match(rf"{path} cannot be written: the disk (is full|takes no more)", str(told.value))
    assert "MiB free" in str(told.value)
    assert [each.read_text() for each in disk.iterdir()] == ["old"]


def test_what_is_wanted_is_told(disk):
    with pytest.raises(DiskFullError, match=r"\(0\.6 MiB wanted, 0\.1 MiB free\)"):
        save(network(128), disk / "net.pth")


@contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_a_limit_on_the_size_of_files(tmp_path, name, write):
    path = tmp_path / name
    path.write_text("old")
    with largest_file(1 << 16), pytest.raises(DiskFullError, match=r"ulimit -f|quota or limit"):
        write(path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_a_read_only_disk(disk, name, write):
    path = disk / name
    path.write_text("old")
    make_read_only(disk)
    with pytest.raises(UserInputError, match=r"cannot be written: the file system is read-only"):
        write(path)
    assert path.read_text() == "old"


def error_of(capsys):
    """The one line of an error, without what was logged before it."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_slim_on_a_full_disk(disk, tmp_path, capsys):
    trained = network(64)
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
    save(trained, tmp_path / "net.pth")
    output = disk / "slim.pth"
    quick = ["--image-size", "8", "--no-latency", "-q"]
    code = slim.main([str(tmp_path / "net.pth"), "--ratio", "0.1", "-o", str(output), *quick])
    assert code == 6
    assert error_of(capsys).startswith(
        f"python -m compress.slim: error: {output} cannot be written: the disk is full"
    )
    assert not list(disk.iterdir())


def test_evaluate_on_a_full_disk(disk, tmp_path, capsys):
    save(network(), tmp_path / "net.pth")
    (disk / "filling").write_bytes(b"x" * KIB * 1024)
    data = ["--data", "digits", "--image-size", "8"]
    code = evaluate.main([str(tmp_path / "net.pth"), *data, "-o", str(disk / "out"), "-q"])
    assert code == 6
    assert "report.json cannot be written: the disk is full" in error_of(capsys)


def write_recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "steps": SMALL["steps"][:1]}))
    return str(path)


def test_run_on_a_full_disk_goes_on_when_there_is_space(tmp_path, capsys):
    with small_disk(tmp_path / "disk", kib=256) as disk:
        recipe, filling = write_recipe(tmp_path), disk / "filling"
        filling.write_bytes(b"x" * (256 - 24) * 1024)
        command = [recipe, "-o", str(disk / "run"), "-q"]
        assert run.main(command) == 6
        assert "[1/1] train: " in (told := error_of(capsys))
        assert "cannot be written: the disk is full" in told
        assert not list(disk.rglob("*.part"))
        filling.unlink()
        assert run.main(command) == 0
        assert (disk / "run" / "train" / "best.pth").is_file()


def test_run_on_a_read_only_disk(disk, tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    make_read_only(disk)
    assert run.main([recipe, "-o", str(disk / "run"), "-q"]) == 3
    assert error_of(capsys).endswith(
        f"error: {disk / 'run'} cannot be written: the file system is read-only; give another "
        "place with -o/--output"
    )
