"""Recipes that begin with a network that somebody has trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import compress
from compress.checkpoint import read_checkpoint
from compress.data.image_data import Preprocessing
from compress.errors import UserInputError
from compress.models.factory import call_factory
from compress.models.gfnet import GFNet
from compress.models.vgg import VGG
from compress.recipe.plan import plan_tasks
from compress.recipe.run import check_recipe
from compress.recipe.schema import read_recipe
from compress.run import main
from tests.exit_networks import resnet

SMALL = Preprocessing(16, "pillow-bilinear", 16, mean=(0.2,) * 3, std=(0.4,) * 3)
FACTORY = "tests.networks:BottleneckResNet"
SHORT = {"epochs": 1, "batch_size": 256, "warmup_epochs": 0}
CHAIN = [
    {"evaluate": {}},
    {"slim": {"ratios": [0.4]}},
    {"evaluate": {}},
    {"finetune": SHORT},
    {"evaluate": {}},
    {"export": {"format": "bundle"}},
    {"dispatch": {}},
    {"compare": {"seconds": 0.05}},
    {"report": {}},
]


def trained(folder: Path, name: str = "trained.pth", **config: Any) -> Path:
    torch.manual_seed(0)
    settings = {"widths": [[8, 16], [24]], "num_classes": 10, "hidden": [], "pooled": 2}
    return saved(VGG(**{**settings, **config}), folder / name)


def saved(model: nn.Module, file: Path, preprocessing: Preprocessing = SMALL) -> Path:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.2, 1.5)
    return compress.save(model, file, meta={"preprocessing": preprocessing.to_dict()})


def written(folder: Path, first: dict[str, Any], chain: list[dict[str, Any]]) -> Path:
    content = {"name": "mine", "data": "digits", "steps": [first, *chain]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder / "mine.yaml"


def figures(run: Path, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / task / "done.json").read_text())["figures"]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    recipe = written(folder, {"start": {"checkpoint": str(trained(folder))}}, CHAIN)
    assert main([str(recipe), "-o", str(folder / "run"), "-q"]) == 0
    return folder


def test_every_network_is_measured_once_a_checkpoint(finished):
    tasks = sorted(path.name for path in (finished / "run" / "accuracy").iterdir())
    assert tasks == ["0.4-finetune", "0.4-slim", "baseline-start"]
    slimmed = figures(finished / "run", "accuracy/0.4-slim")["test"]
    assert slimmed == figures(finished / "run", "slim/0.4")["test"]
    assert slimmed != figures(finished / "run", "accuracy/0.4-finetune")["test"]


def test_pixels_are_prepared_as_the_checkpoint_records_all_the_way(finished):
    for file in ("start/start.pth", "slim/0.4/slim.pth", "finetune/0.4/best.pth"):
        found = read_checkpoint(finished / "run" / file).meta["preprocessing"]
        assert found == SMALL.to_dict(), file
    manifest = json.loads((finished / "run/export/0.4/bundle/manifest.json").read_text())
    assert manifest["preprocessing"] == SMALL.to_dict()


def test_the_table_compares_with_what_was_given(finished):
    rows = json.loads((finished / "run/compare/table.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["baseline", "slim 0.4"]
    before = figures(finished / "run", "accuracy/baseline-start")["test"]["acc1"]
    assert rows[0]["acc1_before"] == before
    assert rows[1]["acc1"] == figures(finished / "run", "finetune/0.4")["test"]["acc1"]
    assert "baseline" in (finished / "run/report/report.html").read_text()


def test_nothing_runs_again_until_the_file_changes(finished, caplog):
    again = [str(finished / "mine.yaml"), "-o", str(finished / "run")]
    marks = {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("done.json")}
    assert main([*again, "-q"]) == 0
    assert marks == {path: path.stat().st_mtime_ns for path in marks}
    (first, *_) = plan_tasks(read_recipe(finished / "mine.yaml"))
    other = trained(finished, "other.pth", hidden=[12])
    overrides = [f"start.checkpoint={other}"]
    assert plan_tasks(read_recipe(finished / "mine.yaml", overrides))[0].options != first.options


def test_a_network_of_somebody_elses_class(tmp_path):
    torch.manual_seed(0)
    saved(call_factory(FACTORY), tmp_path / "own.pth")
    start = {"start": {"checkpoint": str(tmp_path / "own.pth"), "model": FACTORY}}
    chain = [{"slim": {"ratios": [0.4]}}, {"finetune": SHORT}, {"export": {}}]
    run = tmp_path / "run"
    assert main([str(written(tmp_path, start, chain)), "-o", str(run), "-q"]) == 0
    assert (run / "export/0.4/model.onnx").is_file()
    assert figures(run, "slim/0.4")["true_pruned_ratio"] > 0.2


def test_training_may_begin_with_trained_weights(tmp_path):
    file = trained(tmp_path, num_classes=7)  # of other classes: its head is drawn anew
    chain = [{"slim": {"ratios": [0.4]}}]
    recipe = written(tmp_path, {"train": {"start": str(file), **SHORT}}, chain)
    run = tmp_path / "run"
    assert main([str(recipe), "-o", str(run), "-q"]) == 0
    assert read_checkpoint(run / "train/best.pth").config["num_classes"] == 10
    assert read_checkpoint(run / "train/best.pth").meta["preprocessing"] == SMALL.to_dict()


@pytest.mark.parametrize(
    ("order", "networks"),
    [
        (["exits", "slim"], {"slim 0.5", "slim 0.5 of dynn", "dynn"}),
        (["slim", "exits"], {"slim 0.5", "slim 0.5 dynn", "dynn"}),
    ],
)
def test_slim_and_exits_follow_one_another_in_both_orders(tmp_path, order, networks):
    torch.manual_seed(0)
    model = GFNet(image_size=16, patch_size=4, width=8, depth=3, num_classes=10)
    file = saved(model, tmp_path / "gf.pth")
    steps = {
        "exits": {"exits": {**SHORT, "positions": [0], "head_warmup_epochs": 0}},
        "slim": {"slim": {"ratios": [0.5]}},
    }
    chain = [*(steps[kind] for kind in order), {"evaluate": {"threshold": 0.5}}]
    recipe = written(tmp_path, {"start": {"checkpoint": str(file)}}, chain)
    run = tmp_path / "run"
    assert main([str(recipe), "-o", str(run), "-q"]) == 0
    evaluated = {task.name for task in plan_tasks(read_recipe(recipe)) if task.kind == "evaluate"}
    dynamic = {name.removeprefix("slim ").replace(" ", "-") for name in networks if "dynn" in name}
    assert evaluated == {f"evaluate/{name}" for name in dynamic}


@pytest.mark.parametrize(
    ("positions", "head"),
    [(["layer1.1", "layer2.0"], "linear"), ("auto:2", "conv:8")],
    ids=["by-path", "auto"],
)
def test_exits_behind_modules_of_any_network_from_training_to_report(tmp_path, positions, head):
    torch.manual_seed(0)
    file = saved(resnet(), tmp_path / "resnet.pth")
    chain = [
        {"exits": {**SHORT, "positions": positions, "head": head, "head_warmup_epochs": 1}},
        {"plan": {"max_drop": 20.0}},
        {"evaluate": {}},
        {"export": {"format": "bundle"}},
        {"dispatch": {}},
        {"compare": {"seconds": 0.05}},
        {"report": {}},
    ]
    recipe = written(tmp_path, {"start": {"checkpoint": str(file)}}, chain)
    run = tmp_path / "run"
    assert main([str(recipe), "-o", str(run), "-q"]) == 0
    made = figures(run, "exits/dynn")["positions"]
    assert len(made) == 2
    assert all(isinstance(path, str) for path in made)
    assert made == positions or positions == "auto:2"
    plan = figures(run, "plan/dynn")
    assert set(plan["exits"]) <= set(made)
    evaluated = figures(run, "evaluate/dynn")["test"]
    assert evaluated["positions"] == [*plan["exits"], "final head"]
    dispatched = figures(run, "dispatch/dynn")
    assert dispatched["same_decisions"] >= 0.99 * dispatched["images"] > 0
    html = (run / "report/report.html").read_text()
    assert all(f">{path}<" in html or path in html for path in plan["exits"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"positions": ["layer9"]}, "no module 'layer9'"),
        ({"positions": "auto:40"}, "auto:40 asks for 40 exits"),
        ({"positions": ["layer1.1", "layer1.1"]}, "repeat"),
        ({"positions": [0]}, "no module 'blocks.0'"),
        ({"positions": ["layer1.1"], "head": "conw"}, "expected linear"),
        ({"positions": "auto"}, "positions"),
        ({"positions": ["a b"]}, "position"),
        ({"positions": []}, "positions"),
    ],
    ids=str,
)
def test_exits_that_cannot_be_are_told_before_anything_runs(tmp_path, capsys, options, problem):
    torch.manual_seed(0)
    file = saved(resnet(), tmp_path / "resnet.pth")
    recipe = written(tmp_path, {"start": {"checkpoint": str(file)}}, [{"exits": options}])
    assert main([str(recipe), "-o", str(tmp_path / "run"), "-q"]) == 3
    told = capsys.readouterr().err
    assert "step 2 (exits)" in told
    assert problem in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"start": {}}, "'checkpoint' is missing"),
        ({"start": {"checkpoint": "none.pth"}}, "none.pth does not exist"),
        ({"train": {}}, "expected `model`, or `start`"),
        ({"train": {"start": "GIVEN", "model": {"arch": "gfnet_12_192"}}}, "train.model names"),
        ({"start": {"checkpoint": "GIVEN", "model": FACTORY}}, "needs no --model"),
    ],
    ids=["no file", "missing", "nothing", "another network", "factory"],
)
def test_what_cannot_begin_a_recipe(tmp_path, capsys, first, message):
    text = json.dumps(first).replace("GIVEN", str(trained(tmp_path)))
    recipe = written(tmp_path, json.loads(text), [{"slim": {"ratios": [0.4]}}])
    code = main([str(recipe), "-o", str(tmp_path / "run"), "-q"])
    assert code == 3
    assert message in capsys.readouterr().err


def test_chains_that_need_other_pixels_are_refused(tmp_path):
    other = Preprocessing(16, "pillow-bicubic", 16, mean=(0.2,) * 3, std=(0.4,) * 3)
    files = {
        "one": trained(tmp_path),
        "two": saved(compress.load(trained(tmp_path)), tmp_path / "two.pth", other),
    }
    chains = {name: [{"start": {"checkpoint": str(file)}}] for name, file in files.items()}
    content = {"name": "mine", "data": "digits", "chains": chains}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserInputError, match="prepared otherwise"):
        check_recipe(read_recipe(tmp_path / "mine.yaml"))
