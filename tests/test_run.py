"""The door `python -m compress run`: what may stand in place of a recipe, and its options."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compress.run import main

SMALL = {
    "name": "small",
    "data": "digits",
    "image_size": 8,
    "steps": [
        {
            "train": {
                "model": {"arch": "vgg", "widths": [[8, 8]], "hidden": [], "pooled": 1},
                "epochs": 1,
                "sparsity_lambda": 0.01,
            }
        },
        {"slim": {"ratios": [0.2, 0.5], "round_to": 1, "min_channels": 1}},
        {"compare": {"seconds": 0.1}},
    ],
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    return str(path)


def told(capsys) -> str:
    return capsys.readouterr().err


def test_list(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "quickstart" in lines
    after = lines[lines.index("gfnet_12_384_ucm") + 1 :]
    assert [line.split()[0] for line in after if line[2:3].isupper()][:3] == [
        "Purpose",
        "Data",
        "Time",
    ]
    assert main(["list", "--json"]) == 0
    (quickstart,) = (
        each
        for each in json.loads(capsys.readouterr().out)["recipes"]
        if each["name"] == "quickstart"
    )
    assert Path(quickstart["path"]).name == "quickstart.yaml"


def test_list_and_copy_need_neither_torch_nor_pydantic(tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'pydantic', 'yaml'): sys.modules[name] = None\n"
        "import compress.run as door\n"
        "raise SystemExit(door.main(['list']) or door.main(['copy', 'quickstart', sys.argv[1]]))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True)
    assert (tmp_path / "quickstart.yaml").is_file()


def test_show(capsys, small):
    assert main(["show", small]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == SMALL
    assert main(["show", small, "--set", "train.epochs=3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [task["name"] for task in shown["plan"]] == ["train", "slim/0.2", "slim/0.5", "compare"]
    assert shown["plan"][0]["options"]["epochs"] == 3


def test_copy_then_run_by_path(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "quickstart", "mine.yaml"]) == 0
    assert "python -m compress run mine.yaml" in capsys.readouterr().out
    assert main(["copy", "quickstart", "mine.yaml"]) == 3
    assert "mine.yaml exists" in told(capsys)
    assert main(["mine.yaml", "--dry-run"]) == 0


def changed(tmp_path, number: int, **options) -> str:
    steps = json.loads(json.dumps(SMALL["steps"]))
    next(iter(steps[number].values())).update(options)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "steps": steps}))
    return str(path)


@pytest.mark.parametrize(
    ("number", "options", "problem"),
    [
        (0, {"epoch": 2}, "did you mean 'epochs'?"),
        (0, {"model": {"arch": "vgg17"}}, "step 1 (train): network 'vgg17' is not known"),
        (
            0,
            {"model": {"arch": "vgg", "width": 3}},
            "step 1 (train): the configuration does not fit",
        ),
        (0, {"model": {"arch": "gfnet", "patch_size": 3}}, "not divisible by the patch size 3"),
        (1, {"ignore": ["features.9"]}, "step 2 (slim): --ignore 'features.9' matches no layer"),
        (1, {"groups": ["hidden"]}, "step 2 (slim): --groups names 'hidden'"),
    ],
    ids=str,
)
def test_validate_finds_mistakes_without_data(capsys, tmp_path, small, number, options, problem):
    path = changed(tmp_path, number, **options)
    assert main(["validate", small, path, "--set", "data=folder:none"]) == 3
    good, bad = capsys.readouterr().out.splitlines()
    assert good == f"{small}: valid, 4 tasks"
    assert bad.startswith(f"{path}: ")
    assert problem in bad


def test_exits_behind_blocks_that_are_not_there(capsys, tmp_path):
    model = {"arch": "gfnet", "patch_size": 4, "width": 8, "depth": 3}
    steps = [{"train": {"model": model}}, {"exits": {"positions": [0, 7]}}]
    path = tmp_path / "deep.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "steps": steps}))
    assert main(["validate", str(path), "--json"]) == 3
    (answer,) = json.loads(capsys.readouterr().out)["recipes"]
    assert answer["valid"] is False
    assert "step 2 (exits): " in answer["problem"]


def test_every_shipped_recipe_validates_by_name(capsys):
    names = sorted(path.stem for path in Path("recipes").glob("*.yaml"))
    assert main(["validate", *names]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--dry-run", "--data", "folder:none"], "does not exist or is no folder"),
        (["--data", "cifar10:none"], "does not exist or is no folder"),
        (["--data", "mnist:here"], "expected one of digits, cifar10:DIR, cifar100:DIR"),
        (["--resume"], "runs/small holds no run"),
        (["--jobs", "0"], "--jobs is 0; expected at least 1"),
        (["--seeds", "0,x"], "--seeds is '0,x'"),
        (["--slurm", "gpu"], "--slurm is 'gpu'; expected KEY=VALUE"),
        (["--set", "slim.ignore=[nothing]"], "step 2 (slim): --ignore 'nothing' matches no layer"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told_before_anything_runs(capsys, small, tmp_path, arguments, problem):
    assert main([small, *arguments]) == 3
    assert problem in told(capsys)
    assert not (tmp_path / "runs").exists()


def test_resume_and_fresh_exclude_each_other(small):
    with pytest.raises(SystemExit) as stop:
        main([small, "--resume", "--fresh"])
    assert stop.value.code == 2


def test_jobs_under_a_launcher_are_refused(capsys, small, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([small, "--jobs", "2"]) == 3
    assert "under a launcher" in told(capsys)


@pytest.mark.slow
def test_seeds_make_a_run_each_which_resume_finds(capsys, small):
    assert main([small, "--seeds", "3,4", "-q", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert list(tables) == ["seed-3/compare", "seed-4/compare"]
    for seed in (3, 4):
        assert json.loads(Path(f"runs/small/seed-{seed}/recipe.json").read_text())["seed"] == seed
    assert main([small, "--seeds", "3,4", "-q", "--resume"]) == 0
    assert capsys.readouterr().out.startswith("seed-3/compare\n")


@pytest.mark.slow
def test_jobs(capsys, small, caplog):
    with caplog.at_level(logging.INFO, logger="compress"):
        assert main([small, "--jobs", "2", "--seeds", "0,1", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert [row["ratio"] for row in tables["seed-1/compare"]["rows"]] == [None, 0.2, 0.5]
    assert "[1/4] seed-0/train: started" in caplog.text
    assert main([small, "--seeds", "0,1"]) == 0  # in one process: all is done
    assert "seed-1/compare" in capsys.readouterr().out


@pytest.mark.slow
def test_a_launch_of_two_processes_trains_together_and_tells_once(small, tmp_path):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"),
        *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
        *("--main_process_port=0", "-m", "compress.run", small, "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(done.stdout)["tables"].values()  # one object: one process printed
    assert [row["ratio"] for row in table["rows"]] == [None, 0.2, 0.5]
    (metrics,) = (tmp_path / "runs/small/train").glob("metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[0])["step"] == 7  # 898 images in 128s
