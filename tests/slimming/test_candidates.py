import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.data.image_data import Preprocessing, assemble
from compress.data.spec import load_data
from compress.errors import UnsupportedModelError, UserInputError
from compress.slim import main
from compress.slimming import best, judge
from compress.slimming.candidates import Candidate, Mending, candidates, choose
from compress.slimming.judge import Score, evidence_of
from compress.slimming.output_error import relative_error
from compress.slimming.slim import SlimOptions, slim_model
from tests.networks import FACTORIES, IMAGE, bottleneck_resnet, trained_like

OPTIONS = SlimOptions(round_to=4, min_channels=4)


def several_outputs(network: nn.Module, scale: float) -> nn.Module:
    class Detector(nn.Module):
        def forward(self, x: torch.Tensor) -> dict:
            return {"boxes": [x, scale * x.mean((2, 3))], "sizes": torch.ones(2)}

    return Detector()


def test_the_error_of_several_outputs_is_that_of_the_one_that_changed_most():
    reference, other = (several_outputs(nn.Identity(), scale) for scale in (1.0, 1.5))
    assert relative_error(other, reference, torch.ones(2, 3, 4, 4)) == pytest.approx(0.5)
    parts = torch.ones(4, 3, 4, 4).split(1)
    assert relative_error(other, reference, parts) == pytest.approx(0.5)
    assert math.isnan(relative_error(several_outputs(other, math.nan), reference, parts))


def test_outputs_that_cannot_be_compared_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"gives output \(2, 6\), slimmed it gives"):
        relative_error(nn.Linear(4, 5), nn.Linear(4, 6), torch.ones(2, 4))


class Classifier(nn.Module):
    """Says the class of `small_data` by the mean brightness, wrong by `shift` classes."""

    def __init__(self, shift: float = 0.0, classes: int = 4) -> None:
        super().__init__()
        self.shift, self.classes = shift, classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.mean((1, 2, 3)) * self.classes - 0.5 + self.shift
        return -(level[:, None] - torch.arange(self.classes)).abs()


def small_data(images: int = 200):
    """Grey images of four classes by their brightness: the class is the quarter that it is in."""
    labels = np.arange(images, dtype=np.int64) % 4
    pixels = torch.from_numpy((labels * 64 + 32).astype(np.uint8))
    stored = pixels[:, None, None, None].expand(-1, 3, 2, 2).contiguous()

    class Source:
        lazy, shape = False, (3, 2, 2)

        def read(self, positions):
            return stored[positions]

    third = np.arange(images) % 2
    positions = {
        "train": np.flatnonzero(third == 0),
        "validation": np.arange(4),
        "calibration": np.arange(images),
        "test": np.arange(4),
    }
    return assemble(
        "squares",
        Source(),
        classes=("a", "b", "c", "d"),
        labels=labels,
        positions=positions,
        preprocessing=Preprocessing(2, "pillow-bicubic", 2, (0.0,) * 3, (1.0,) * 3),
        seed=0,
        content=[],
    )


def test_networks_are_judged_by_accuracy_where_labels_fit():
    evidence = evidence_of(small_data(), Classifier(), images=80)
    assert evidence.by_accuracy
    assert evidence.unslimmed.acc1 == 100
    made = [Candidate(name=f"{s}", network=Classifier(s)) for s in (2.0, 0.2, 1.0)]
    choice = choose(iter(made), evidence)
    assert choice.best.name == "0.2"
    assert choice.scores["0.2"].correct == choice.scores["0.2"].count == 80
    assert choice.scores["2.0"].acc1 == pytest.approx(25, abs=15)  # the two brightest look alike
    assert "0.2 100.00" in choice.sentence()
    assert choice.sentence().endswith("written: 0.2")


@pytest.mark.parametrize(
    ("reference", "labelled"),
    [
        pytest.param(Classifier(classes=7), True, id="other classes"),
        pytest.param(Classifier(), False, id="classes in another order"),
        pytest.param(Classifier(shift=9.0), True, id="no better than chance"),
        pytest.param(several_outputs(nn.Identity(), 1.0), True, id="a detector"),
    ],
)
def test_without_labels_that_fit_outputs_are_compared(reference, labelled):
    evidence = evidence_of(small_data(), reference, images=80, labelled=labelled)
    assert not evidence.by_accuracy
    score = evidence.score(reference)
    assert (score.correct, score.error) == (None, 0.0)
    assert evidence.to_dict()["judged_by"] == "outputs"


def test_a_network_that_computes_nan_is_never_the_best():
    evidence = evidence_of(small_data(), Classifier(), images=80)
    made = [Candidate(name=f"{s}", network=Classifier(s)) for s in (math.nan, 3.0)]
    assert choose(iter(made), evidence).best.name == "3.0"
    json.dumps(choose(iter(made), evidence).to_dict(), allow_nan=False)
    assert Score(error=math.nan).rank > Score(error=1e9).rank


def test_images_are_drawn_by_the_seed_from_the_split_that_is_said():
    data = small_data()
    one, again, other = (evidence_of(data, Classifier(), images=30, seed=s) for s in (0, 0, 1))
    assert one.fitting.positions.equal(again.fitting.positions)
    assert not one.fitting.positions.equal(other.fitting.positions)
    assert (one.fitting.positions % 2 == 0).all()  # where the training images lie
    assert (len(one.fitting), len(one.choice)) == (30, 30)
    with pytest.raises(UserInputError, match="--images is 0; expected at least 1"):
        evidence_of(data, Classifier(), images=0)


@pytest.mark.parametrize(("macs", "images"), [(10**6, 2000), (10**9, 1000), (10**12, 64)])
def test_heavy_networks_look_at_fewer_images(macs, images):
    assert Mending().images_for(macs) == images
    assert Mending(images=7).images_for(macs) == 7


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_every_candidate_of_any_network_runs_and_is_of_one_shape(factory):
    data = load_data("digits", image_size=16)
    network = trained_like(factory())
    evidence = evidence_of(data, network, images=40)
    results = [
        slim_model(network, 0.4, replace(OPTIONS, absorb=absorb), example=torch.zeros(IMAGE))
        for absorb in (False, True)
    ]
    made = list(candidates(results, evidence, Mending()))
    blends = [f"blend {share}" for share in (0.25, 0.5, 0.75)]
    assert [c.name for c in made] == ["plain", "fold", "re-estimate", *blends, "repair"]
    shapes = {n: t.shape for n, t in results[0].model.state_dict().items()}
    outputs = []
    for candidate in made:
        assert {n: t.shape for n, t in candidate.network.state_dict().items()} == shapes
        outputs.append(candidate.network(evidence.together(2)).detach())
    for i, one in enumerate(outputs):
        assert not any(one.equal(other) for other in outputs[:i])  # none shares tensors with others


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("candidates")
    torch.save(trained_like(bottleneck_resnet()).state_dict(), folder / "net.pth")
    return folder / "net.pth"


def slim(checkpoint, capsys, *options) -> dict:
    arguments = [checkpoint, "--ratio", 0.4, "--model", "tests.networks:bottleneck_resnet"]
    arguments += ["--round-to", 4, "--min-channels", 4, "--image-size", 16, "--no-latency"]
    code = main([str(a) for a in (*arguments, "--json", "--force", *options)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_the_door_writes_the_best_and_tells_all(checkpoint, capsys):
    report = slim(checkpoint, capsys, "--data", "digits", "--images", 60)
    choice = report["choice"]
    assert choice["judged_by"] == "outputs"  # random weights say no class
    errors = {name: found["relative_error"] for name, found in choice["candidates"].items()}
    assert choice["chosen"] == report["made_by"] == min(errors, key=errors.get)
    assert (choice["images_of_training"], choice["images_of_calibration"]) == (60, 60)
    assert choice["repair"]["images"] == 60
    made = compress.load(report["output"], factory="tests.networks:bottleneck_resnet")
    whole = trained_like(bottleneck_resnet())
    data = load_data("digits", image_size=16)
    evidence = evidence_of(data, whole, images=60)
    assert evidence.score(made).error == pytest.approx(errors[choice["chosen"]], rel=1e-4)
    state = torch.load(report["output"], weights_only=True)
    assert state["meta"]["slimming"]["made_by"] == choice["chosen"]


def test_without_repair_none_is_tried(checkpoint, capsys):
    options = ["--data", "digits", "--images", 20, "--no-repair", "--dry-run", "--no-absorb"]
    choice = slim(checkpoint, capsys, *options)["choice"]
    assert not {"repair", "fold"} & set(choice["candidates"])
    assert choice["repair"] is None


@pytest.mark.parametrize("worse", ["fold", "plain"])
def test_without_data_the_cut_or_the_fold_whichever_is_closer(
    checkpoint, capsys, monkeypatch, worse
):
    """A fold that does harm: the constants of the removed channels are taken off again."""
    real = best.slim_model

    def harmful(model, ratio, options, *, example):
        result = real(model, ratio, options, example=example)
        if options.absorb == (worse == "fold"):
            with torch.no_grad():
                result.model.fc.bias += 100
        return result

    monkeypatch.setattr(best, "slim_model", harmful)
    report = slim(checkpoint, capsys)
    assert report["made_by"] == ("plain" if worse == "fold" else "fold")
    assert report["absorption"]["applied"] == (worse == "plain")
    made = compress.load(report["output"], factory="tests.networks:bottleneck_resnet")
    assert made.fc.bias.abs().max() < 50
    main([*map(str, (checkpoint, "--ratio", 0.4, "--model", "tests.networks:bottleneck_resnet")),
          "--round-to", "4", "--min-channels", "4", "--image-size", "16", "--no-latency",
          "--dry-run"])  # fmt: skip
    assert ("not folded, as that is the worse" in capsys.readouterr().out) == (worse == "fold")


def test_chance_is_what_a_guess_would_reach():
    assert not judge._above_chance(14, 100, classes=10)
    assert judge._above_chance(30, 100, classes=10)
