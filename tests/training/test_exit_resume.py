"""Training of exits that is killed at any moment goes on and ends in the same bits."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import compress.training.loop as loop
from compress.training.exit_training import ExitTrainingResult
from tests.training.exit_fakes import tiny_dynn, tiny_resnet, train
from tests.training.test_resume import assert_same, in_a_process

SETTINGS: dict[str, Any] = {"save_every_steps": 3, "head_warmup_patience": 1, "epochs": 3}
MIXED = {"regime": "mixed", "distillation_alpha": 0.3}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def run(folder: Path, **settings: Any) -> ExitTrainingResult:
    torch.set_num_threads(1)
    return train(tiny_dynn(), folder, settings={**SETTINGS, **settings})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("frozen", "mixed")}
    run(folders["frozen"])
    run(folders["mixed"], **MIXED)
    return folders


def check(folder: Path, expected: Path) -> None:
    assert_same(folder, expected)
    assert_same(folder / "warmup", expected / "warmup")
    assert not list(folder.rglob("*.part")), "half-written files are left"


def killing(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> Callable[[], None]:
    """Let the `number`-th call of a function be the last; returns what undoes that."""
    original, calls = getattr(owner, name), itertools.count(1)

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise KilledError
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return lambda: monkeypatch.setattr(owner, name, original)


# Warm-up: 4 steps an epoch, at most 4 epochs; main stage: 3 epochs.
@pytest.mark.parametrize("step", [1, 4, 6, 8, 15, 18, 21, 24, 26])
def test_killed_at_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Path], step: int
) -> None:
    undo = killing(monkeypatch, loop, "_train_step", step)
    with pytest.raises(KilledError):
        run(tmp_path)
    undo()
    run(tmp_path)
    check(tmp_path, undisturbed["frozen"])


@pytest.mark.parametrize("regime", ["frozen", "mixed"])
def test_killed_again_and_again_at_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Path], regime: str
) -> None:
    """Every run dies at its ninth file, wherever in the two stages that is."""
    deaths = 0
    while True:
        undo = killing(monkeypatch, os, "replace", 9)
        try:
            result = run(tmp_path, **(MIXED if regime == "mixed" else {}))
            break
        except KilledError:
            deaths += 1
        finally:
            undo()
    assert deaths >= 3
    assert result.main.epochs_run == 3
    check(tmp_path, undisturbed[regime])


def killed_for_good(folder: Path, number: int) -> None:
    patch = pytest.MonkeyPatch()
    original, calls = loop._train_step, itertools.count(1)

    def counted(*arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)

    patch.setattr(loop, "_train_step", counted)
    run(folder)


def test_killed_by_a_signal(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    assert in_a_process(killed_for_good, tmp_path, 20) == -signal.SIGKILL
    run(tmp_path)
    check(tmp_path, undisturbed["frozen"])


def test_a_finished_run_is_not_run_again(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    model = tiny_dynn()
    again = train(model, undisturbed["frozen"], settings=SETTINGS)
    assert again.main.was_finished
    assert again.warmup.was_finished
    best = torch.load(again.best, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())


def run_of_maps(folder: Path) -> None:
    torch.set_num_threads(1)
    train(tiny_resnet("conv:8"), folder, settings=SETTINGS)


def killed_on_maps(folder: Path, number: int) -> None:
    patch = pytest.MonkeyPatch()
    original, calls = loop._train_step, itertools.count(1)

    def counted(*arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)

    patch.setattr(loop, "_train_step", counted)
    run_of_maps(folder)


def test_heads_with_running_statistics_go_on_in_the_same_bits(tmp_path: Path) -> None:
    run_of_maps(tmp_path / "whole")
    for step in (6, 17):  # in the warm-up, and in the main stage or late in the warm-up
        folder = tmp_path / str(step)
        folder.mkdir()
        assert in_a_process(killed_on_maps, folder, step) == -signal.SIGKILL
        run_of_maps(folder)
        check(folder, tmp_path / "whole")
