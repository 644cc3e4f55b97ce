"""Nothing of the user's is lost: whose a folder is, what is moved aside, what `--fresh` removes."""

import json
import subprocess
import sys

import pytest

from compress.errors import UserInputError
from compress.files import write_text
from compress.recipe.engine import Context, run_tasks
from compress.recipe.plan import Task
from compress.recipe.run_folder import MARK, opened_run

TASK = Task(name="train", kind="write", options={"n": 1})
OLD_RECIPE = {"name": "a", "data": "digits", "seed": 0, "steps": [], "chains": None}


def write(context: Context) -> dict:
    write_text(context.folder / "n.txt", str(context.task.options["n"]))
    return {"n": context.task.options["n"]}


def run(run_dir, *tasks, **options):
    return run_tasks(tasks or [TASK], {"write": write}, run_dir, identity={}, **options)


def of(n, name="train", version=1):
    return Task(name=name, kind="write", options={"n": n}, version=version)


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {"train/photo.jpg": "x"},
        {"notes.txt": "x"},
        {"train/done.json": "{}", "recipe.json": '{"name": "soup"}'},
        {"recipe.json": json.dumps(OLD_RECIPE), "train/photo.jpg": "x"},
        {MARK: "not ours", "train/photo.jpg": "x"},
        {MARK: '{"format": "other/1"}', "train/done.json": "{}"},
        {"seed-1/notes.txt": "x"},
    ],
    ids=str,
)
def test_a_folder_of_somebody_is_not_touched(tmp_path, files, fresh):
    for name, content in files.items():
        write_text(tmp_path / name, content)
    before = files_of(tmp_path)
    with pytest.raises(UserInputError, match="is not a run of ours"):
        run(tmp_path, recipe_json="{}", fresh=fresh)
    assert files_of(tmp_path) == before
    assert not (tmp_path / ".lock").exists()


def test_an_empty_folder_and_a_new_one_get_the_mark(tmp_path):
    for folder in (tmp_path, tmp_path / "new" / "one"):
        run(folder)
        assert json.loads((folder / MARK).read_text()) == {"format": "compress.run/1"}


def test_a_run_of_the_version_before_the_mark_is_taken_over(tmp_path):
    write_text(tmp_path / "recipe.json", json.dumps(OLD_RECIPE))
    write_text(tmp_path / "train" / "started.json", '{"fingerprint": "0"}')
    write_text(tmp_path / "train" / "best.pth", "a trained network")
    run(tmp_path)
    assert (tmp_path / "train.superseded-1" / "best.pth").read_text() == "a trained network"


def test_runs_by_seed_do_not_bar_a_run_above_them(tmp_path):
    run(tmp_path / "seed-3")
    run(tmp_path)
    assert (tmp_path / "seed-3" / "train" / "n.txt").exists()


def test_another_option_or_version_moves_aside_what_was_made(tmp_path, caplog):
    for number, task in enumerate((of(1), of(2), of(2, version=2)), start=1):
        run(tmp_path, task)
        assert len(list(tmp_path.glob("train*"))) == number
    assert (tmp_path / "train.superseded-1" / "n.txt").read_text() == "1"
    assert (tmp_path / "train.superseded-2" / "n.txt").read_text() == "2"
    told = [record.message for record in caplog.records if "superseded" in record.message]
    assert told[0].endswith(
        "train: what is there was made with other options, inputs or code; "
        "kept as train.superseded-1"
    )
    assert len(told) == 2


def test_code_is_no_part_of_what_a_step_is(tmp_path, monkeypatch):
    """An upgrade of the package alone makes nothing again: no file of it is read."""
    run(tmp_path)
    monkeypatch.setattr("compress.__version__", "99")
    ran = []
    run_tasks([TASK], {"write": lambda context: ran.append(context) or {}}, tmp_path, identity={})
    assert ran == []


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", "{}", '{"fingerprint": 1, "figures": {}, "files": {}}', "[" * 100_000, None,
     '{"fingerprint": "F", "figures": {}, "files": 3}'],
    ids=lambda record: str(record)[:20],
)  # fmt: skip
def test_a_damaged_record_is_not_done_and_moved_aside(tmp_path, record):
    run(tmp_path)
    path = tmp_path / "train" / "done.json"
    if record is None:  # as an earlier version may have written it
        content = json.loads(path.read_text())
        del content["files"]
        record = json.dumps(content)
    path.write_text(record)
    assert run(tmp_path)["train"].figures == {"n": 1}
    assert (tmp_path / "train.superseded-1" / "done.json").read_text() == record
    assert (tmp_path / "train" / "n.txt").read_text() == "1"


def test_a_result_that_somebody_changed_is_kept_and_made_again(tmp_path):
    run(tmp_path)
    (tmp_path / "train" / "n.txt").write_text("by hand")
    run(tmp_path)
    assert (tmp_path / "train.superseded-1" / "n.txt").read_text() == "by hand"
    assert (tmp_path / "train" / "n.txt").read_text() == "1"


def test_fresh_removes_what_is_ours_and_nothing_else(tmp_path):
    run(tmp_path, of(1), of(5, name="other"))
    run(tmp_path, of(2))
    write_text(tmp_path / "train.superseded-7" / "photo.jpg", "x")
    write_text(tmp_path / "train.best" / "photo.jpg", "x")
    write_text(tmp_path / "notes.txt", "x")
    run(tmp_path, of(2), fresh=True)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        "train", "other", "train.superseded-7", "train.best", "notes.txt",
    }  # fmt: skip


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_in_the_way_of_a_step_is_not_touched(tmp_path, fresh):
    run(tmp_path, of(5, name="other"))
    write_text(tmp_path / "train" / "photo.jpg", "x")
    with pytest.raises(UserInputError, match=r"holds 'photo\.jpg', which no step of ours made"):
        run(tmp_path, fresh=fresh)
    assert (tmp_path / "train" / "photo.jpg").read_text() == "x"
    assert list((tmp_path / "train").iterdir()) == [tmp_path / "train" / "photo.jpg"]


def test_a_run_that_is_refused_leaves_the_recipe_of_the_one_that_runs(tmp_path):
    run(tmp_path, recipe_json="the first")
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from compress.recipe.run_folder import opened_run\n"
        "with opened_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, tmp_path]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserInputError, match="another process is running"):
            run(tmp_path, recipe_json="the second", fresh=True)
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / "recipe.json").read_text() == "the first"
    assert (tmp_path / "train" / "n.txt").read_text() == "1"
    run(tmp_path, recipe_json="the second")
    assert (tmp_path / "recipe.json").read_text() == "the second"


def test_leftovers_of_killed_writers_are_swept_and_never_recorded(tmp_path):
    left = ("train/.bundle.abcdefgh.part/segment_0.onnx", "train/.n.txt.abcdefgh.part")
    with opened_run(tmp_path):
        pass
    for name in left:
        write_text(tmp_path / name, "half")
    run(tmp_path)
    record = json.loads((tmp_path / "train" / "done.json").read_text())
    assert list(record["files"]) == ["n.txt"]
    assert not list(tmp_path.rglob("*.part"))


def work_that_is_killed(context: Context) -> dict:
    write_text(context.folder / ".bundle.abcdefgh.part" / "segment_0.onnx", "half")
    return write(context)


def test_what_a_process_within_a_step_left_is_not_recorded(tmp_path):
    run_tasks([TASK], {"write": work_that_is_killed}, tmp_path, identity={})
    record = json.loads((tmp_path / "train" / "done.json").read_text())
    assert list(record["files"]) == ["n.txt"]
