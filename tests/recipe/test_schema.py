import json
from pathlib import Path

import pytest
import yaml

from compress.errors import UserInputError
from compress.recipe.plan import plan_tasks
from compress.recipe.schema import read_recipe

RECIPES = sorted(Path("recipes").glob("*.yaml"))
BASE = {
    "name": "small",
    "data": "digits",
    "steps": [
        {"train": {"model": {"arch": "vgg", "widths": [[8]]}, "epochs": 1}},
        {"slim": {"ratios": [0.2, 0.4]}},
        {"finetune": {"epochs": 1}},
        {"export": {}},
        {"compare": {}},
    ],
}


def write(tmp_path, content) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(number: int, **options) -> dict:
    steps = [dict(step) for step in BASE["steps"]]
    (kind,) = steps[number]
    steps[number] = {kind: {**steps[number][kind], **options}}
    return {**BASE, "steps": steps}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_tells_its_command(path):
    assert plan_tasks(read_recipe(path))
    header = path.read_text().partition("\nname:")[0]
    for word in ("Purpose", "Data", "Command", f"recipes/{path.name}"):
        assert word in header


def test_the_plan_fans_out_per_ratio(tmp_path):
    tasks = {task.name: task for task in plan_tasks(read_recipe(write(tmp_path, BASE)))}
    assert list(tasks) == [
        "train", "slim/0.2", "slim/0.4", "finetune/0.2", "finetune/0.4",
        "export/baseline", "export/0.2", "export/0.4", "compare",
    ]  # fmt: skip
    assert tasks["slim/0.4"].options["ratio"] == 0.4
    assert tasks["finetune/0.4"].needs == ("slim/0.4",)
    assert tasks["export/baseline"].needs == ("train",)
    assert tasks["export/0.2"].needs == ("finetune/0.2",)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "a\\b", ".git", "a.", "con", "NUL", "com1", "lpt9.txt", "a\n", "a b",
     "é", "a" * 101, "train.superseded-1"],
)  # fmt: skip
def test_names_are_plain_folders(tmp_path, name):
    chains = {"name": "small", "data": "digits", "chains": {name: BASE["steps"]}}
    for content in ({**BASE, "name": name}, chains):
        with pytest.raises(UserInputError, match="expected up to 100 letters, digits"):
            read_recipe(write(tmp_path, content))
    with pytest.raises(UserInputError, match="expected up to 100 letters, digits"):
        read_recipe(write(tmp_path, BASE), [f"name={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["a", "vgg16.short", "console", "_x", "-", "A-1_b.c", "nulls"])
def test_plain_names_are_taken(tmp_path, name):
    assert read_recipe(write(tmp_path, {**BASE, "name": name})).name == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing", "holds NoneType"),
        ("- a list", "holds list"),
        ("name: [", "is not YAML"),
        ({**BASE, "name": "../escape"}, "name is '../escape'"),
        ({**BASE, "seeed": 1}, "'seeed' is not an option; did you mean 'seed'?"),
        ({**BASE, "steps": []}, "steps"),
        ({**BASE, "steps": [{"slm": {}}]}, "step 1 is 'slm'; did you mean 'slim'?"),
        ({**BASE, "steps": [{"slim": {}, "train": {}}]}, "expected one, the kind of the step"),
        ({**BASE, "steps": BASE["steps"][1:]}, "expected `start` or `train` before it"),
        ({**BASE, "steps": [BASE["steps"][0], {"finetune": {}}]}, "expected `slim` before it"),
        ({**BASE, "steps": [BASE["steps"][0]] * 2}, "makes 'train' twice"),
        (changed(0, epoch=3), "step 1 (train): 'epoch' is not an option; did you mean 'epochs'?"),
        (changed(0, epochs="many"), "epochs is 'many'"),
        (changed(0, epochs=0), "epochs is 0"),
        (changed(0, lr=-1.0), "lr is -1.0"),
        (changed(0, model={"widths": []}), "model needs `arch`"),
        (changed(0, augment={"horizontl_flip": True}), "did you mean 'horizontal_flip'?"),
        (changed(1, ratios=[0.2, 1.0]), "ratios.1 is 1.0"),
        (changed(1, ratios=[]), "ratios"),
        (changed(3, format="tflite"), "format is 'tflite'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_found_before_anything_runs(tmp_path, content, message):
    with pytest.raises(UserInputError) as problem:
        plan_tasks(read_recipe(write(tmp_path, content)))
    assert message in str(problem.value)


def test_overrides(tmp_path):
    path = write(tmp_path, BASE)
    recipe = read_recipe(
        path, ["finetune.epochs=3", "seed=7", "train.augment.horizontal_flip=true"]
    )
    steps = {step.kind: step.options for step in recipe.checked_chains()[""]}
    assert (recipe.seed, steps["finetune"].epochs, steps["train"].epochs) == (7, 3, 1)
    assert steps["train"].augment.horizontal_flip is True
    assert "horizontal_flip" not in path.read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distil.epochs=3", "has no step 'distil'"),
        ("finetune.epochz=3", "did you mean 'epochs'?"),
        ("finetune.epochs", "expected option=value"),
        ("finetune.epochs=[", "not YAML"),
        ("sed=1", "did you mean 'seed'?"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    with pytest.raises(UserInputError) as problem:
        read_recipe(write(tmp_path, BASE), [override])
    assert message in str(problem.value)
