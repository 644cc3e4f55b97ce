"""A run that is killed, and goes on, ends in the same bits as one that is left alone.

The process kills itself with SIGKILL at a chosen moment: no handler runs, no file is flushed. The
network has dropout and BatchNorm and the images are augmented, so that a wrong random state shows.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.training.batches import Batch
from compress.training.loop import TrainingResult, fit
from compress.training.objectives import with_gamma_penalty
from tests.training.fakes import FakeAugment, Net, config, fake_data, plain

STEPS = 4  # per epoch: 48 images in batches of 12
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "save_every_steps": 3,
    "optimizer": "adamw",
    "lr": 0.02,
    "warmup_epochs": 0.5,
    "gradient_accumulation": 2,
    "early_stopping_patience": 5,
    "workers": 1,
}


def run(
    folder: Path, before_step: Callable[[int], None] = lambda step: None, **more: Any
) -> TrainingResult:
    torch.set_num_threads(1)
    data = fake_data()
    calls = 0

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nonlocal calls
        before_step(calls)
        calls += 1
        return with_gamma_penalty(plain, 0.01)(model, batch)

    return fit(
        Net(dropout=0.4), data, objective, config(**{**SETTINGS, **more}), folder,
        augment=FakeAugment(data), device="cpu", progress=False,
    )  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before_micro_batch(folder: Path, number: int) -> None:
    run(folder, lambda step: die() if step == number else None)


def killed_at_file(
    folder: Path, name: str, count: int, moment: str, save_every_steps: int | None = 3
) -> None:
    """Die at the `count`-th writing of a file: just before or just after it takes its name."""
    replace, seen = os.replace, 0

    def replaced(source: Any, target: Any) -> None:
        nonlocal seen
        seen += Path(target).name == name
        hit = Path(target).name == name and seen == count
        if hit and moment == "before":
            die()
        replace(source, target)
        if hit:
            die()

    os.replace = replaced
    run(folder, save_every_steps=save_every_steps)


def in_a_process(work: Callable[..., Any], *arguments: Any) -> int | None:
    # A fork server, as it has the imports done and, unlike a fork of this process, no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["accelerate", "torch._dynamo", "compress.training.loop", "tests.training.fakes"]
    )
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join(timeout=120)
    return process.exitcode


def content(folder: Path) -> tuple[Any, ...]:
    """Everything that two runs must share: weights, metrics, records (but for the clock)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in r.items() if k not in ("time_s", "images_per_s")} for r in lines]
    weights = []
    for name in ("best.pth", "last.pth"):
        checkpoint = torch.load(folder / name, weights_only=True)
        weights.append((checkpoint["meta"]["metrics"]["epoch"], checkpoint["state_dict"]))
    return records, weights


def assert_same(folder: Path, other: Path) -> None:
    (records, weights), (expected, expected_weights) = content(folder), content(other)
    assert records == expected
    for (epoch, state), (expected_epoch, expected_state) in zip(
        weights, expected_weights, strict=True
    ):
        assert epoch == expected_epoch
        assert list(state) == list(expected_state)
        assert all(torch.equal(state[name], expected_state[name]) for name in state)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    run(folder)
    torch.set_num_threads(threads)
    return folder


def check_resumed(folder: Path, undisturbed: Path) -> None:
    assert in_a_process(run, folder) == 0
    assert_same(folder, undisturbed)
    assert not list(folder.glob(".*")), "half-written files are left"


@pytest.mark.parametrize(
    ("micro_batch", "saved"),
    [
        pytest.param(3, (0, 0), id="when only the start is saved"),
        pytest.param(6, (0, 3), id="right behind a resume point"),
        pytest.param(7, (0, 3), id="between two micro-batches of a step"),
        pytest.param(2 * STEPS, (1, 0), id="at the start of an epoch"),
        pytest.param(2 * STEPS + 7, (1, 3), id="inside the second epoch"),
        pytest.param(6 * STEPS - 1, (2, 3), id="at the last micro-batch of all"),
    ],
)
def test_killed_inside_an_epoch(
    tmp_path: Path, undisturbed: Path, micro_batch: int, saved: tuple[int, int]
) -> None:
    code = in_a_process(killed_before_micro_batch, tmp_path, micro_batch)
    assert code == -signal.SIGKILL
    position = torch.load(tmp_path / "state.pt", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == saved
    check_resumed(tmp_path, undisturbed)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "count"),
    [("state.pt", 1), ("state.pt", 2), ("state.pt", 3), ("last.pth", 2), ("metrics.jsonl", 2)],
)
def test_killed_while_a_file_is_written(
    tmp_path: Path, undisturbed: Path, name: str, count: int, moment: str
) -> None:
    assert in_a_process(killed_at_file, tmp_path, name, count, moment) == -signal.SIGKILL
    check_resumed(tmp_path, undisturbed)


@pytest.mark.parametrize("name", ["best.pth", "last.pth", "metrics.jsonl"])
def test_killed_at_the_end_of_the_first_epoch(tmp_path: Path, undisturbed: Path, name: str) -> None:
    """Files that are there before any resume point behind the start."""
    code = in_a_process(killed_at_file, tmp_path, name, 1, "after", None)
    assert code == -signal.SIGKILL
    assert (tmp_path / name).exists()
    check_resumed(tmp_path, undisturbed)


def test_killed_again_and_again(tmp_path: Path, undisturbed: Path) -> None:
    for _ in range(3):  # dies seven micro-batches after each resume
        assert in_a_process(killed_before_micro_batch, tmp_path, 7) == -signal.SIGKILL
    check_resumed(tmp_path, undisturbed)


def test_metrics_that_are_ahead_are_taken_back(tmp_path: Path, undisturbed: Path) -> None:
    """A kill between metrics.jsonl and the resume point must not leave an epoch twice."""
    assert in_a_process(killed_at_file, tmp_path, "state.pt", 5, "before") == -signal.SIGKILL
    metrics = tmp_path / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 2  # the resume point knows of one
    assert in_a_process(killed_before_micro_batch, tmp_path, 1) == -signal.SIGKILL
    assert len(metrics.read_text().splitlines()) == 1
    check_resumed(tmp_path, undisturbed)
