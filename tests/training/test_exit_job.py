import json
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.checkpoint import save
from compress.errors import UserInputError
from compress.measure.accuracy import evaluate_accuracy
from compress.models import build
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.training.exit_job import THRESHOLDS, ExitJob, ExitReport, train_exits_checkpoint
from compress.training.exit_outcomes import exit_outcomes, exits_taken, threshold_sweep
from tests.training.exit_fakes import exit_config, exit_data, tiny_dynn
from tests.training.fakes import CLASSES, SIDE, FakeSplit


def plain_checkpoint(folder: Path) -> Path:
    torch.manual_seed(3)
    model = GFNet(image_size=SIDE, patch_size=2, width=8, depth=3, num_classes=CLASSES)
    return save(model, folder / "gfnet.pth", meta={"origin": "a test"})


def train(checkpoint: Path, **given: Any) -> ExitReport:
    data: Any = given.pop("loaded", None) or exit_data()
    options = {"exits": (0, 1), "config": exit_config(), "device": "cpu", "progress": False}
    job = ExitJob(checkpoint=checkpoint, data="digits", **{**options, **given})
    report = train_exits_checkpoint(job, data)
    assert report is not None
    return report


def test_a_plain_network_gets_exits_and_a_report(tmp_path: Path) -> None:
    checkpoint, data = plain_checkpoint(tmp_path), exit_data()
    report = train(checkpoint, loaded=data)
    folder = tmp_path / "gfnet.exits"
    written = json.loads((folder / "report.json").read_text())
    assert written == report.to_dict()
    assert written["schema"] == "compress.train_exits/1"
    assert {"python", "torch"} <= set(written["versions"])
    assert written["exits"] == [0, 1]
    assert written["data"] == {"name": "fake", "sha256": data.sha256}
    assert len(written["source"]["sha256"]) == 64
    assert set(written["metrics"]) == set(written["before"]) == {"validation", "test"}
    assert [row["threshold"] for row in written["calibration"]] == [
        round(0.2 + 0.05 * i, 2) for i in range(16)
    ]
    meta = torch.load(folder / "best.pth", weights_only=True)["meta"]
    assert meta["source_sha256"] == written["source"]["sha256"]
    assert meta["origin"] == "a test"

    loaded = compress.load(folder / "best.pth")
    assert isinstance(loaded, GFNetDynn)
    before = compress.load(checkpoint)
    for split in ("validation", "test"):
        for network in (before, loaded):  # the final head kept its accuracy
            measured = evaluate_accuracy(
                network, data.splits[split], data.normalize, progress=False
            )
            assert measured.acc1 == written["before"][split]["acc1"]
        assert written["metrics"][split]["exit_2_acc1"] == measured.acc1


def test_a_threshold_is_suggested_by_calibration_and_the_set_one_is_measured(
    tmp_path: Path,
) -> None:
    data = exit_data()
    config = exit_config(threshold=0.45)
    report = train(plain_checkpoint(tmp_path), loaded=data, largest_drop=100.0, config=config)
    told = report.to_text().splitlines()
    assert told[0].startswith(
        "exits behind blocks.0, blocks.1, threshold 0.45 (by calibration data, sug"
    )
    assert [line.split()[0] for line in told[2:4]] == ["validation", "test"]
    cheapest = min(report.calibration, key=lambda row: row["cost_share"])
    assert report.suggested_threshold == cheapest["threshold"]
    model = compress.load(report.result.best)
    assert isinstance(model, GFNetDynn)
    measured = exit_outcomes(model, data.splits["calibration"], data.normalize, batch_size=7)
    rows = threshold_sweep(measured, report.result.costs, THRESHOLDS)
    assert [row["acc1"] for row in rows] == [row["acc1"] for row in report.calibration]
    outcomes = exit_outcomes(model, data.splits["test"], data.normalize, batch_size=7)
    taken = exits_taken(outcomes.gates, 0.45)
    right = outcomes.correct.gather(1, taken[:, None]).double().mean().item()
    assert report.metrics["test"]["acc1"] == pytest.approx(100 * right)


def test_no_threshold_is_close_enough(tmp_path: Path) -> None:
    report = train(plain_checkpoint(tmp_path), largest_drop=-101.0)
    assert report.suggested_threshold is None
    assert report.to_dict()["suggested_threshold"] is None


def test_the_same_job_gives_the_same_weights_and_goes_on(tmp_path: Path) -> None:
    """New heads are drawn from the seed, whatever was drawn before."""
    checkpoint = plain_checkpoint(tmp_path)
    torch.manual_seed(1)
    one = train(checkpoint, output=tmp_path / "one")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = train(checkpoint, output=tmp_path / "other")
    assert torch.equal(torch.get_rng_state(), state)
    weights = [torch.load(r.result.best, weights_only=True)["state_dict"] for r in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert train(checkpoint, output=tmp_path / "one").result.main.was_finished


def test_exits_of_the_checkpoint_are_kept_or_changed(tmp_path: Path) -> None:
    checkpoint = save(tiny_dynn(), tmp_path / "dynn.pth")
    assert train(checkpoint, exits=None, output=tmp_path / "a").exits == (0, 1)
    assert train(checkpoint, exits=(1,), output=tmp_path / "b").exits == (1,)


def test_data_are_loaded_by_name_at_the_size_of_the_network(tmp_path: Path) -> None:
    model = GFNet(image_size=8, patch_size=4, width=8, depth=2, num_classes=10)
    checkpoint = save(model, tmp_path / "digits.pth")
    config = exit_config(epochs=1, head_warmup_epochs=1, batch_size=256)
    job = ExitJob(
        checkpoint=checkpoint, data="digits", exits=(0,), config=config, device="cpu",
        progress=False,
    )  # fmt: skip
    report = train_exits_checkpoint(job)
    assert report is not None
    assert report.before["test"].count == 450


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"exits": (2,)}, "position 2 is the last block", id="last block"),
        pytest.param({"exits": (0, 0)}, "repeat themselves", id="repeated"),
        pytest.param({"exits": (7,)}, "out of range", id="out of range"),
        pytest.param({"exits": ()}, "no exit position is given", id="none"),
        pytest.param({"exits": None}, "has no exits and none are asked for", id="not told"),
        pytest.param({"costs": (3.0, 2.0, 1.0)}, "expected rising numbers", id="costs"),
    ],
)
def test_jobs_that_cannot_be_done(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message) as found:
        train(plain_checkpoint(tmp_path), **given)
    assert found.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["gfnet.pth"]


@pytest.mark.parametrize("split", ["train", "validation", "calibration"])
def test_an_empty_split_is_told_before_the_training(tmp_path: Path, split: str) -> None:
    data = exit_data()
    data.splits[split] = FakeSplit(0, 1)
    with pytest.raises(UserInputError, match=f"no images in the split '{split}'") as found:
        train(plain_checkpoint(tmp_path), loaded=data)
    assert found.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["gfnet.pth"]


def test_blocks_by_number_of_a_network_without(tmp_path: Path) -> None:
    config = {"widths": [[4]], "hidden": [], "pooled": 1, "num_classes": CLASSES}
    checkpoint = save(build("vgg", config), tmp_path / "vgg.pth")
    with pytest.raises(UserInputError, match=r"VGG has no module 'blocks\.0' to put an"):
        train(checkpoint)
