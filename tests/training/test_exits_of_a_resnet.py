"""Training of exits on a residual network: heads on pooled features, heads that see the map."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import compress.training.exit_training as exit_training
from compress.models.early_exit import EarlyExitNetwork
from compress.training.exit_costs import exit_costs
from compress.training.exit_outcomes import exit_metrics, exit_outcomes
from tests.training.exit_fakes import exit_data, tiny_resnet, train
from tests.training.fakes import SIDE

HEADS = ("linear", "conv:8")
NO_CACHE = {"cache_features": False}


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: torch.nn.Module) -> set[str]:
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_heads_learn_and_the_backbone_stays_to_the_bit(
    tmp_path: Path, head: str, cache: bool
) -> None:
    model, data = tiny_resnet(head), exit_data()
    before = state_of(model)
    settings = {
        "head_warmup_epochs": 30, "head_warmup_patience": 30, "lr": 0.03, "cache_features": cache,
    }  # fmt: skip
    result = train(model, tmp_path, data=data, settings=settings)
    moved = changed(before, model)
    assert not any(name.startswith("backbone") for name in moved)  # running statistics too
    assert {name for name, _ in model.named_parameters() if name.startswith("heads")} <= moved
    assert any(name.startswith("gates") for name in moved)
    assert ("heads.0.see.1.running_mean" in moved) == (head == "conv:8")
    assert (tmp_path / "features").exists() == cache
    for exit_number in (0, 1):  # one in three is right by chance
        assert result.metrics[f"exit_{exit_number}_acc1"] > 50


@pytest.mark.parametrize("head", ["linear", "conv:8"])
def test_cached_features_are_as_good_as_the_backbone(tmp_path: Path, head: str) -> None:
    losses = []
    for name, more in {"cached": {}, "through": NO_CACHE}.items():
        settings = {"head_warmup_patience": 9, **more}
        train(tiny_resnet(head), tmp_path / name, settings=settings)
        losses.append([r["train_loss"] for r in records(tmp_path / name / "warmup")])
    assert losses[0] == pytest.approx(losses[1], rel=5e-2)  # float16
    assert losses[0] != losses[1], "the cache was not used at all"


def test_a_cache_of_maps_holds_them_before_layers_that_work_in_place(tmp_path: Path) -> None:
    model, data = tiny_resnet("conv:8"), exit_data()
    train(model, tmp_path, data=data, settings={"epochs": 1, "head_warmup_epochs": 1})
    (file,) = (tmp_path / "features").glob("train-*.npy")
    rows = np.load(file)
    seen: dict[int, Tensor] = {}
    for number, path in enumerate(model.exit_paths):
        model.backbone.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, number=number: seen.update({number: output.clone()})
        )
    with torch.no_grad():
        final = model(data.normalize(data.splits["train"].pixels))
    expected = torch.cat([seen[0].flatten(1), seen[1].flatten(1), final], 1)
    torch.testing.assert_close(torch.from_numpy(rows).float(), expected, rtol=1e-3, atol=1e-3)


def test_a_cache_that_would_be_too_large_is_not_made_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # an image has 8*4*4 and 16*2*2 values behind the two blocks and 3 logits, in two bytes each
    of_all = 2 * (48 + 30) * (128 + 64 + 3) / (1 << 30)
    settings = {"epochs": 1, "head_warmup_epochs": 0}
    monkeypatch.setattr(exit_training, "MAX_CACHE_GIB", of_all)
    with caplog.at_level(logging.WARNING):
        train(tiny_resnet("conv:8"), tmp_path / "just", settings=settings)
    assert (tmp_path / "just" / "features").exists()
    assert not caplog.records
    monkeypatch.setattr(exit_training, "MAX_CACHE_GIB", 0.99 * of_all)
    with caplog.at_level(logging.WARNING):
        train(tiny_resnet("conv:8"), tmp_path / "less", settings=settings)
    assert not (tmp_path / "less" / "features").exists()
    (record,) = caplog.records
    assert "every epoch runs the backbone" in record.getMessage()


def metrics_of(model: EarlyExitNetwork) -> dict[str, float]:
    data = exit_data()
    outcomes = exit_outcomes(model.eval(), data.splits["validation"], data.normalize, batch_size=12)
    costs = exit_costs(model, (3, SIDE, SIDE))
    return exit_metrics(outcomes, costs, threshold=0.5, cost_lambda=0.5)


def test_the_warmup_restores_the_best_weights_and_running_statistics(tmp_path: Path) -> None:
    model = tiny_resnet("conv:8")
    settings = {"head_warmup_epochs": 8, "head_warmup_patience": 9, "lr": 0.1}
    train(model, tmp_path, settings=settings)
    history = records(tmp_path / "warmup")
    best = torch.load(tmp_path / "warmup" / "best.pth", weights_only=True)["state_dict"]
    model.load_state_dict(best)
    got = metrics_of(model)
    for i in range(2):
        accuracy, loss = max((r[f"exit_{i}_acc1"], -r[f"exit_{i}_loss"]) for r in history)
        assert got[f"exit_{i}_acc1"] == accuracy
        assert got[f"exit_{i}_loss"] == pytest.approx(-loss, rel=2e-2)  # features are float16
    tracked = [int(best[f"heads.{i}.see.1.num_batches_tracked"]) for i in range(2)]
    at_best = [
        4 * max(history, key=lambda r: (r[f"exit_{i}_acc1"], -r[f"exit_{i}_loss"]))["epoch"]
        for i in range(2)
    ]
    assert tracked == at_best  # batches of twelve images


@pytest.mark.parametrize("head", ["linear", "conv:8"])
def test_everything_moves_in_the_mixed_regime(tmp_path: Path, head: str) -> None:
    model = tiny_resnet(head)
    before = state_of(model)
    settings = {
        "regime": "mixed", "head_warmup_epochs": 0, "epochs": 1, "backbone_lr_scale": 0.1,
    }  # fmt: skip
    train(model, tmp_path, settings=settings)
    assert {name for name, _ in model.named_parameters()} <= changed(before, model)
    assert "backbone.bn1.running_mean" in changed(before, model)
    assert not (tmp_path / "features").exists()
