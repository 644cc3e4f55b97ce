import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compress
from compress.errors import UserInputError
from compress.models.gfnet_dynn import GFNetDynn
from compress.training.exit_costs import exit_costs
from compress.training.exit_outcomes import exit_metrics, exit_outcomes
from tests.training.exit_fakes import exit_data, tiny_dynn, train
from tests.training.fakes import SIDE, FakeAugment, same_weights

NO_CACHE = {"cache_features": False}


def moved(model: GFNetDynn, start: GFNetDynn) -> set[str]:
    """First parts of the names of the parameters that changed."""
    pairs = zip(model.named_parameters(), start.parameters(), strict=True)
    return {name.partition(".")[0] for (name, one), other in pairs if not torch.equal(one, other)}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_heads_and_gates_learn_and_the_backbone_rests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = tiny_dynn(drop_path=0.5), exit_data()
    # Every image is told apart by its brightest channel, which the heads can read.
    images = data.normalize(data.splits["validation"].pixels)
    before = model(images)
    start = exit_metrics_of(model, data)
    with caplog.at_level(logging.INFO):
        result = train(model, tmp_path, data=data, settings={"head_warmup_epochs": 12})
    assert moved(model, tiny_dynn(drop_path=0.5)) == {"intermediate_heads", "gates"}
    assert torch.equal(model(images), before)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "forward" not in vars(model)
    assert [r.message for r in caplog.records].count("Unfreezing classifiers after warmup") == 1
    assert result.metrics["exit_0_acc1"] > start["exit_0_acc1"] + 20
    assert result.metrics["gated_cost"] < start["gated_cost"]
    assert result.metrics["gated_cost"] == min(r["gated_cost"] for r in records(tmp_path))


def exit_metrics_of(model: GFNetDynn, data: Any, split: str = "validation") -> dict[str, float]:
    outcomes = exit_outcomes(model, data.splits[split], data.normalize, batch_size=12)
    costs = exit_costs(model, (3, SIDE, SIDE))
    return exit_metrics(outcomes, costs, threshold=0.5, cost_lambda=0.5)


def test_what_a_run_writes(tmp_path: Path) -> None:
    model, data = tiny_dynn(), exit_data()
    result = train(model, tmp_path, data=data, costs=(1.0, 2.0, 3.0), save_meta={"origin": "x"})
    lines = records(tmp_path)
    assert lines == list(result.main.history)
    named = {"train_classifier_loss", "train_gate_loss", "exit_2_acc1", "exit_0_rate", "macs_share"}
    assert named <= set(lines[0])
    assert len(records(tmp_path / "warmup")) == result.warmup.epochs_run
    assert result.best == tmp_path / "best.pth"
    loaded = compress.load(result.best)
    assert same_weights(loaded, model)
    meta = torch.load(result.best, weights_only=True)["meta"]
    assert meta["early_exit"]["exits"] == [0, 1]
    assert meta["early_exit"]["costs"]["values"] == [1.0, 2.0, 3.0]
    assert meta["early_exit"]["cost_lambda"] == 0.5
    assert meta["data"] == {"name": "fake", "sha256": data.sha256}
    # Times stand in metrics.jsonl alone, so that equal runs give equal checkpoints.
    timeless = {k: v for k, v in result.metrics.items() if k not in ("time_s", "images_per_s")}
    assert meta["metrics"] == timeless
    assert meta["origin"] == "x"
    assert "torch" in meta["training"]["versions"]
    # The figures are those of the network through its backbone, up to float16.
    again = exit_metrics_of(model, data)
    assert again["exit_1_loss"] == pytest.approx(result.metrics["exit_1_loss"], rel=1e-3)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("stage", ["warmup", "main"])
def test_training_on_cached_features_is_training_through_the_backbone(
    tmp_path: Path, distilled: bool, stage: str
) -> None:
    """One stage at a time: which epoch is the best may hang on the last bit of a feature."""
    settings = {"head_warmup_patience": 9} if stage == "warmup" else {"head_warmup_epochs": 0}
    states, losses = [], []
    for name, more in {"cached": {}, "through": NO_CACHE}.items():
        folder = tmp_path / name
        train(tiny_dynn(distilled=distilled), folder, settings={**settings, **more})
        assert (folder / "features").is_dir() == (name == "cached")
        folder = folder / "warmup" if stage == "warmup" else folder
        losses.append([record["train_loss"] for record in records(folder)])
        if stage == "main":
            states.append(torch.load(folder / "last.pth", weights_only=True)["state_dict"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[1], "the cache was not used at all"
    if stage == "main":
        for name, tensor in states[0].items():
            torch.testing.assert_close(tensor, states[1][name], rtol=1e-2, atol=5e-3)  # float16


def test_gates_rest_while_heads_move_and_the_other_way_round(tmp_path: Path) -> None:
    def after(epochs: int) -> GFNetDynn:
        model = tiny_dynn()
        settings = {
            "epochs": epochs, "schedule": "constant", "head_warmup_epochs": 0, "weight_decay": 0.1,
        }  # fmt: skip
        folder = tmp_path / str(epochs)
        train(model, folder, settings=settings)
        last = torch.load(folder / "last.pth", weights_only=True)["state_dict"]
        model.load_state_dict(last)
        return model

    start, first, second, third = tiny_dynn(), after(1), after(2), after(3)
    assert moved(first, start) == {"gates"}
    assert moved(second, first) == {"intermediate_heads"}
    assert moved(third, second) == {"gates"}


def test_all_move_in_the_mixed_regime_the_backbone_slowly(tmp_path: Path) -> None:
    model, start = tiny_dynn(), tiny_dynn()
    settings = {
        "regime": "mixed", "head_warmup_epochs": 0, "backbone_lr_scale": 0.01, "epochs": 1,
        "schedule": "constant", "weight_decay": 0.0,
    }  # fmt: skip
    train(model, tmp_path, settings=settings)
    assert moved(model, start) == {
        "patch_embed", "pos_embed", "blocks", "norm", "head", "intermediate_heads", "gates",
    }  # fmt: skip
    # Adam moves a parameter by at most about its learning rate a step: 4 steps of 0.02.
    for (name, one), other in zip(model.named_parameters(), start.parameters(), strict=True):
        scale = 5.0 if "gates" in name else 1.0 if "intermediate" in name else 0.01
        largest = (one - other).abs().max().item()
        assert 0.3 * scale * 0.08 < largest < 1.3 * scale * 0.08, name
    assert not (tmp_path / "features").exists()


def test_the_warmup_leaves_every_head_at_its_best_epoch(tmp_path: Path) -> None:
    model = tiny_dynn()
    train(model, tmp_path, settings={"head_warmup_epochs": 9, "lr": 0.3, "weight_decay": 0.0})
    history = records(tmp_path / "warmup")
    state = torch.load(tmp_path / "warmup" / "best.pth", weights_only=True)["state_dict"]
    model.load_state_dict(state)
    data = exit_data()
    got = exit_metrics_of(model, data)
    for i in range(2):
        best = max((r[f"exit_{i}_acc1"], -r[f"exit_{i}_loss"]) for r in history)
        assert got[f"exit_{i}_acc1"] == best[0]
        assert got[f"exit_{i}_loss"] == pytest.approx(-best[1], rel=1e-2)  # features are float16
    assert moved(model, tiny_dynn()) == {"intermediate_heads"}


def test_an_augmentation_reaches_the_network_and_rules_the_cache_out(tmp_path: Path) -> None:
    data = exit_data()
    plain, noisy = tiny_dynn(), tiny_dynn()
    train(plain, tmp_path / "plain", data=data)
    train(noisy, tmp_path / "noisy", data=data, augment=FakeAugment(data))
    assert not (tmp_path / "noisy" / "features").exists()
    assert not same_weights(plain, noisy)


@pytest.mark.parametrize(
    "settings",
    [
        {"distillation_alpha": 0.5},
        {"classifier_loss": "expected"},
        {"classifier_loss": "normalised"},
        {"phase_steps": 1},
        {"cost_lambda": 3.0},
    ],
)
def test_every_option_changes_the_result(tmp_path: Path, settings: dict[str, Any]) -> None:
    one, other = tiny_dynn(), tiny_dynn()
    train(one, tmp_path / "one")
    train(other, tmp_path / "other", settings=settings)
    assert not same_weights(one, other)


def test_a_higher_lambda_leaves_earlier(tmp_path: Path) -> None:
    shares = []
    for cost_lambda in (0.0, 20.0):
        model = tiny_dynn()
        settings = {"cost_lambda": cost_lambda, "epochs": 12, "gate_lr_scale": 10.0}
        result = train(model, tmp_path / str(cost_lambda), settings=settings)
        shares.append(result.main.history[-1]["macs_share"])
    assert shares[1] < shares[0]


def test_the_test_and_calibration_images_are_never_read(tmp_path: Path) -> None:
    class Untouchable:
        labels = torch.zeros(4, dtype=torch.int64)

        def __len__(self) -> int:
            return 4

        def images(self, indices: Tensor) -> Tensor:
            raise AssertionError("training must not look at these")

    data = exit_data()
    data.splits |= {"test": Untouchable(), "calibration": Untouchable()}
    for name, settings in {"cached": {}, "through": NO_CACHE, "mixed": {"regime": "mixed"}}.items():
        train(tiny_dynn(), tmp_path / name, data=data, settings=settings)


def test_what_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no images in the split 'validation'"):
        train(tiny_dynn(), tmp_path, data=exit_data(validation=0))
    with pytest.raises(UserInputError, match="network has 5 classes, but the data fake have 3"):
        train(tiny_dynn(num_classes=5), tmp_path)
    with pytest.raises(UserInputError, match="2 costs are given for 3 exits"):
        train(tiny_dynn(), tmp_path, costs=(1.0, 2.0))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run_is_refused_unless_fresh(tmp_path: Path) -> None:
    train(tiny_dynn(), tmp_path)
    with pytest.raises(UserInputError, match=r"cost_lambda is 2\.0, was 0\.5"):
        train(tiny_dynn(), tmp_path, settings={"cost_lambda": 2.0})
    with pytest.raises(UserInputError, match=r"early_exit\.start_sha256"):
        train(tiny_dynn(seed=1), tmp_path)
    result = train(tiny_dynn(seed=1), tmp_path, fresh=True)
    assert not result.main.was_finished
    assert train(tiny_dynn(seed=1), tmp_path).main.was_finished
