import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compress.training.loop as loop
from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.measure.accuracy import evaluate_accuracy
from compress.training.batches import Batch
from compress.training.loop import TrainingResult, fit
from compress.training.objectives import objective_of, with_gamma_penalty
from tests.training.fakes import (
    CLASSES,
    FakeAugment,
    FakeData,
    Net,
    config,
    fake_data,
    plain,
    same_weights,
)


def train(model: nn.Module, folder: Path, **given: Any) -> TrainingResult:
    settings = given.pop("settings", {})
    objective = given.pop("objective", plain)
    data = given.pop("data", None) or fake_data()
    return fit(
        model, data, objective, config(**settings), folder, device="cpu", progress=False, **given
    )


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_leaves_the_best_weights(tmp_path: Path) -> None:
    model, data = Net(), fake_data()
    result = train(model, tmp_path, data=data, settings={"epochs": 12, "lr": 0.3})
    measured = evaluate_accuracy(
        model, data.splits["validation"], data.normalize, progress=False, batch_size=12
    )
    assert measured.acc1 > 90  # three classes: 33 by chance
    assert measured.acc1 == result.best_metrics["acc1"] == max(r["acc1"] for r in result.history)
    assert not model.training
    assert result.epochs_run == 12
    assert not result.stopped_early


def test_what_a_run_writes(tmp_path: Path) -> None:
    settings = {"epochs": 2, "sparsity_lambda": 0.01, "schedule": "constant"}
    result = train(
        Net(), tmp_path, settings=settings, save_meta={"source_sha256": "abc"},
        objective=objective_of(config(**settings)),
    )  # fmt: skip
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"best.pth", "last.pth", "metrics.jsonl", "state.pt"}
    lines = records(tmp_path)
    assert lines == list(result.history)
    assert list(lines[0]) == [
        "epoch", "step", "lr", "train_loss", "train_gamma_penalty", "validation_loss",
        "acc1", "acc5", "time_s", "images_per_s",
    ]  # fmt: skip
    assert [(line["epoch"], line["step"], line["lr"]) for line in lines] == [
        (1, 4, 0.1),
        (2, 8, 0.1),
    ]
    checkpoint = torch.load(result.last, weights_only=True)
    meta = checkpoint["meta"]
    times = ("time_s", "images_per_s")  # in no checkpoint, so that equal runs give equal files
    assert meta["metrics"] == {k: v for k, v in lines[-1].items() if k not in times}
    assert meta["data"] == {"name": "fake", "sha256": "0" * 64}
    assert meta["classes"] == ["red", "green", "blue"]
    assert meta["preprocessing"] == {"image_size": 4}
    assert meta["training"]["sparsity_lambda"] == 0.01
    assert meta["source_sha256"] == "abc"
    assert {"python", "torch"} <= set(meta["training"]["versions"])


def test_the_same_call_gives_the_same_bits_and_leaves_the_random_state(tmp_path: Path) -> None:
    models = [Net(dropout=0.4), Net(dropout=0.4)]
    data = fake_data()
    for number, model in enumerate(models):
        torch.manual_seed(number)  # which must not matter
        state = torch.get_rng_state()
        train(model, tmp_path / str(number), data=data, augment=FakeAugment(data))
        assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(*models)
    assert not same_weights(models[0], Net(dropout=0.4))
    for name in ("best.pth", "last.pth"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_the_training_loss_is_the_mean_over_the_steps_of_its_epoch(tmp_path: Path) -> None:
    losses: list[float] = []

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        terms = plain(model, batch)
        losses.append(terms["loss"].item())
        return terms

    result = train(Net(), tmp_path, objective=objective)
    got = [record["train_loss"] for record in result.history]
    expected = [sum(losses[first : first + 4]) / 4 for first in (0, 4, 8)]
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_that_load_ahead_change_nothing(tmp_path: Path, workers: int) -> None:
    one, other = Net(), Net()
    train(one, tmp_path / "one")
    train(other, tmp_path / "other", settings={"workers": workers})
    assert same_weights(one, other)


class StillNorm(nn.BatchNorm2d):
    """BatchNorm by its running statistics, so that dividing a batch changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias
        )


def test_accumulation_adds_up_to_the_whole_batch(tmp_path: Path) -> None:
    whole, divided = Net(), Net()
    for model, parts in ((whole, 1), (divided, 4)):
        model.norm = StillNorm(6)
        train(
            model, tmp_path / str(parts), objective=with_gamma_penalty(plain, 0.01),
            settings={"gradient_accumulation": parts},
        )  # fmt: skip
    for one, other in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)  # float32 order of sums


def test_one_step_of_sgd_by_hand(tmp_path: Path) -> None:
    model, reference, data = Net(norm=False), Net(norm=False), fake_data(train=12)
    train(model, tmp_path, data=data, settings={"epochs": 1, "schedule": "constant", "lr": 0.2})
    split = data.splits["train"]
    loss = nn.functional.cross_entropy(reference(data.normalize(split.pixels)), split.labels)
    loss.backward()
    for name, parameter in reference.named_parameters():
        decay = 1e-4 * parameter if parameter.dim() > 1 else 0.0
        expected = parameter - 0.2 * 1.9 * (parameter.grad + decay)  # 1 + momentum, of Nesterov
        torch.testing.assert_close(dict(model.named_parameters())[name], expected)


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    model, data = Net(norm=False), fake_data(train=12)
    before = [p.detach().clone() for p in model.parameters()]
    settings = {
        "epochs": 1, "schedule": "constant", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0,
        "clip_grad_norm": 0.01,
    }  # fmt: skip
    train(model, tmp_path, data=data, settings=settings)
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_early_stopping_waits_for_its_patience_and_keeps_the_best(tmp_path: Path) -> None:
    accuracies = iter([50.0, 70.0, 60.0, 70.0, 70.0, 99.0])

    def validate(model: nn.Module) -> dict[str, float]:
        return {"acc1": next(accuracies)}

    result = train(
        Net(), tmp_path, settings={"epochs": 9, "early_stopping_patience": 3},
        validate=validate, score=lambda metrics: (metrics["acc1"],),
    )  # fmt: skip
    assert result.stopped_early
    assert result.epochs_run == 5
    assert result.best_metrics["epoch"] == 2
    assert torch.load(result.best, weights_only=True)["meta"]["metrics"]["epoch"] == 2
    assert torch.load(result.last, weights_only=True)["meta"]["metrics"]["epoch"] == 5


def test_of_equal_accuracies_the_lower_loss_is_best(tmp_path: Path) -> None:
    losses = iter([0.5, 0.3, 0.4])
    result = train(
        Net(), tmp_path,
        validate=lambda _: {"acc1": 80.0, "validation_loss": next(losses)},
    )  # fmt: skip
    assert result.best_metrics["epoch"] == 2


def test_evaluation_every_other_epoch_and_at_the_end(tmp_path: Path) -> None:
    result = train(Net(), tmp_path, settings={"epochs": 5, "evaluate_every": 2})
    assert [r["acc1"] is not None for r in result.history] == [False, True, False, True, True]


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    first = Net()
    result = train(first, tmp_path)
    written = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.p*")}

    def never(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("trained again")

    second = Net()
    again = train(second, tmp_path, objective=never)
    assert again.was_finished
    assert again.history == result.history
    assert same_weights(first, second)
    assert written == {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.p*")}
    assert (tmp_path / "state.pt").stat().st_size < 10_000  # no tensors are left in it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"lr": 0.05}}, r"lr is 0.05, was 0.1"),
        ({"model": Net(norm=False)}, r"model.shapes is"),
        ({"data": FakeData(splits=fake_data().splits, sha256="1" * 64)}, r"data.sha256 is '1111"),
        ({"save_meta": {"source_sha256": "other"}}, r"meta.source_sha256 is 'other', was None"),
        ({"augment": FakeAugment(fake_data())}, r"augment is 'without settings', was None"),
    ],
)
def test_another_run_is_refused_and_fresh_discards_it(
    tmp_path: Path, change: dict, message: str
) -> None:
    train(Net(), tmp_path)
    before = (tmp_path / "best.pth").read_bytes()
    model = change.pop("model", Net())
    with pytest.raises(UserInputError, match=message) as caught:
        train(model, tmp_path, **change)
    assert "--fresh" in str(caught.value)
    assert (tmp_path / "best.pth").read_bytes() == before
    train(model, tmp_path, fresh=True, **change)


def test_settings_without_effect_do_not_make_another_run(tmp_path: Path) -> None:
    train(Net(), tmp_path)
    settings = {"workers": 2, "save_every_steps": 1}
    assert train(Net(), tmp_path, settings=settings).was_finished


def test_checkpoints_without_their_run_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_bytes(b"mine")
    with pytest.raises(UserInputError, match=r"best\.pth exists, but no run"):
        train(Net(), tmp_path)
    assert (tmp_path / "best.pth").read_bytes() == b"mine"


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserInputError, match="is a file; expected a folder"):
        train(Net(), tmp_path / "run")


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_resume_point_is_told(tmp_path: Path, damage: bytes | None) -> None:
    train(Net(), tmp_path)
    state = tmp_path / "state.pt"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(UserInputError, match=r"state.pt cannot be read .*--fresh"):
        train(Net(), tmp_path)


def test_a_resume_point_of_another_kind_is_told(tmp_path: Path) -> None:
    torch.save({"format": "else"}, tmp_path / "state.pt")
    with pytest.raises(UserInputError, match="cannot be read"):
        train(Net(), tmp_path)


def test_a_best_checkpoint_that_is_gone_is_told(tmp_path: Path) -> None:
    train(Net(), tmp_path)
    (tmp_path / "best.pth").unlink()
    with pytest.raises(UserInputError, match=r"best\.pth is gone"):
        train(Net(), tmp_path)


def diverging_at(step: int) -> Any:
    calls = 0

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        terms = plain(model, batch)
        return {"loss": terms["loss"] * (float("nan") if calls == step else 1.0)}

    return objective


def test_nan_stops_at_its_step_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"loss is nan at step 7; .*lower --lr"):
        train(Net(), tmp_path, objective=diverging_at(7))  # the third step of the second epoch
    assert [r["epoch"] for r in records(tmp_path)] == [1]
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    assert best["meta"]["metrics"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in best["state_dict"].values())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["position"]["epoch"] == 1


def test_weights_that_became_infinite_are_never_saved(tmp_path: Path) -> None:
    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        # A finite loss of which the gradient is infinite.
        terms = plain(model, batch)
        return {"loss": terms["loss"] + (model.head.bias * 0).abs().sqrt().sum()}

    with pytest.raises(CompressError, match="weights are NaN or infinite after step"):
        train(Net(), tmp_path, objective=objective, data=fake_data(train=12))
    assert not (tmp_path / "best.pth").exists()
    state = torch.load(tmp_path / "state.pt", weights_only=True)  # of the start
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_frozen_layers_stay_as_they_are(tmp_path: Path) -> None:
    model = Net()
    model.conv.requires_grad_(False)
    model.norm.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    train(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("head")), name


def test_a_set_smaller_than_a_batch(tmp_path: Path) -> None:
    result = train(Net(), tmp_path, data=fake_data(train=5), settings={"epochs": 2})
    assert [r["step"] for r in result.history] == [1, 2]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_told(tmp_path: Path, split: str) -> None:
    with pytest.raises(UserInputError, match=f"no images in the split '{split}'"):
        train(Net(), tmp_path, data=fake_data(**{split: 0}))


def test_a_model_that_cannot_be_saved_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no `arch` and `config`"):
        train(nn.Linear(3, 3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_meta_that_is_not_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="JSON"):
        train(Net(), tmp_path, save_meta={"path": tmp_path})


def test_bf16_trains_and_gives_the_model_back_as_it_was(tmp_path: Path) -> None:
    model = Net()
    seen = []

    def objective(wrapped: nn.Module, batch: Batch) -> dict[str, Tensor]:
        seen.append(nn.functional.linear(batch.images.flatten(1), torch.ones(2, 48)).dtype)
        return plain(wrapped, batch)

    train(model, tmp_path / "bf16", objective=objective, settings={"mixed_precision": "bf16"})
    assert set(seen) == {torch.bfloat16}
    assert "forward" not in model.__dict__
    assert not hasattr(model, "_is_accelerate_prepared")
    assert model(torch.zeros(1, 3, 4, 4)).dtype == torch.float32
    # A second run over the same model, in another precision, takes its own settings.
    seen.clear()
    train(model, tmp_path / "full", objective=objective)
    assert set(seen) == {torch.float32}


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="mixed_precision is 'fp16', which this device"):
        train(Net(), tmp_path, settings={"mixed_precision": "fp16"})


def test_tensorboard_holds_the_records(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(Net(), tmp_path, settings={"tensorboard": True})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    got = [(event.step, event.value) for event in events.Scalars("acc1")]
    assert [step for step, _ in got] == [1, 2, 3]
    assert [value for _, value in got] == pytest.approx([r["acc1"] for r in result.history])


def test_other_tensors_than_images_and_another_measure(tmp_path: Path) -> None:
    """What training on cached features needs: its own `prepare`, `validate` and `score`."""
    data = fake_data()

    class Head(nn.Linear):
        arch, config = "head", {}

    for split in data.splits.values():
        split.images = lambda indices, s=split: s.pixels[indices].float().mean(dim=(2, 3)) / 100

    def prepare(features: Tensor, labels: Tensor, seed: int) -> Batch:
        targets = nn.functional.one_hot(labels, CLASSES).float()
        return Batch(images=features, labels=labels, targets=targets)

    def validate(model: nn.Module) -> dict[str, float]:
        split = data.splits["validation"]
        right = model(split.images(torch.arange(len(split)))).argmax(dim=1) == split.labels
        return {"acc1": 100 * right.float().mean().item(), "cost": 2.0}

    result = train(
        Head(3, CLASSES), tmp_path, data=data, prepare=prepare, validate=validate,
        score=lambda metrics: (metrics["acc1"] - metrics["cost"],),
        settings={"epochs": 9, "lr": 0.5},
    )  # fmt: skip
    assert result.best_metrics["acc1"] > 60
    assert result.best_metrics["cost"] == 2.0


def test_resume_points_are_also_written_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SECONDS_PER_SAVE", 0.0)
    monkeypatch.setattr(loop, "STEPS_PER_LOOK", 2)
    saved: list[tuple[int, int]] = []
    original = loop.save_state

    def save(run: Any) -> None:
        saved.append((run.position.epoch, run.position.step))
        original(run)

    monkeypatch.setattr(loop, "save_state", save)
    train(Net(), tmp_path, settings={"epochs": 2}, data=fake_data(train=60))  # five steps an epoch
    assert saved == [(0, 0), (0, 2), (0, 4), (1, 2), (1, 4)]
