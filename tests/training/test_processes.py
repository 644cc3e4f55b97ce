"""Two real processes (gloo, on this machine) against one; and what a device is called."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compress
from compress.errors import ToolchainError, UserInputError
from compress.models.vgg import VGG
from compress.training.processes import is_main_process, resolve_device, seed_generators
from tests.training import two_processes
from tests.training.fakes import fake_data

ROOT = Path(__file__).resolve().parents[2]


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *(part.replace("PORT", port) for part in command)],
        cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    done = launch(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        "--master-port=PORT", two_processes.__file__, str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def weights(file: Path) -> dict[str, Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "micro_batches"),
    [
        # One process takes the same micro-batches, and so the same batch statistics, dropout and
        # augmentation.
        pytest.param("norm", 2, id="BatchNorm, dropout, augmentation, penalty"),
        pytest.param("plain", 1, id="nothing that depends on how a step is divided"),
    ],
)
def test_two_processes_give_the_parameters_of_one(
    launched: Path, tmp_path: Path, case: str, micro_batches: int
) -> None:
    two_processes.train(case, tmp_path, gradient_accumulation=micro_batches)
    one, two = weights(tmp_path / case / "last.pth"), weights(launched / case / "last.pth")
    for name, _ in two_processes.network(case).named_parameters():
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)  # order of sums
    moved = two["head.weight"] - two_processes.network(case).head.weight
    assert moved.abs().max() > 0.01


@pytest.mark.slow
def test_both_processes_end_with_the_same_weights_and_statistics(launched: Path) -> None:
    first, second = ranks(launched)
    for case in (*two_processes.CASES, "found finished"):
        assert all(torch.equal(first[case][name], second[case][name]) for name in first[case])
    assert all(torch.equal(first["norm"][n], first["found finished"][n]) for n in first["norm"])


@pytest.mark.slow
def test_running_statistics_are_those_of_all_images(launched: Path) -> None:
    model, data = two_processes.network("norm"), fake_data(train=12)
    maps = model.conv(data.normalize(data.splits["train"].pixels))  # (12, 6, 4, 4)
    expected = 0.1 * maps.mean(dim=(0, 2, 3))  # BatchNorm's momentum, from 0
    for rank in ranks(launched):
        torch.testing.assert_close(rank["running mean"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_count_every_image_once(launched: Path, tmp_path: Path) -> None:
    two_processes.train("plain", tmp_path)
    one, two = (
        [json.loads(line) for line in (folder / "plain/metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, launched)
    )
    for record, expected in zip(two, one, strict=True):
        assert record["acc1"] == expected["acc1"]
        assert record["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-5)
        assert record["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_an_error_of_one_process_is_told_by_both(launched: Path) -> None:
    for rank in ranks(launched):
        assert "loss is nan at step 1" in rank["nan"]
        assert "seed is 1, was 0" in rank["refused"]


@pytest.mark.slow
def test_the_door_under_accelerate_launch(tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.pth"
    compress.save(VGG(widths=[[4]], num_classes=10, hidden=[], pooled=1), checkpoint)
    done = launch(
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=PORT",
        "-m", "compress.finetune", str(checkpoint), "--data", "digits", "--image-size", "8",
        "--epochs", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one object, so one process printed
    assert report["best"]["step"] == 7  # 898 images in batches of 128, over both processes


def test_the_main_process_is_known_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert isinstance(resolve_device(None), torch.device)
    with pytest.raises(UserInputError, match="device is 'tpus'; expected cpu"):
        resolve_device("tpus")
    with pytest.raises(ToolchainError, match="'cuda:77' cannot be used here"):
        resolve_device("cuda:77")


def test_seeding_is_the_seeding_of_torch() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = torch.rand(3)
        seed_generators(torch.device("cpu"), 5)
        assert torch.equal(torch.rand(3), expected)
