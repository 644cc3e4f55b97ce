import ast
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import compress
from compress.errors import UserInputError
from compress.files import (
    check_output,
    check_readable,
    is_superseded,
    move_aside,
    remove,
    replacing,
    replacing_folder,
    sha256_of,
    sweep_parts,
    write_json,
    write_text,
)


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")  # a lone surrogate cannot be encoded
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from compress.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_text() == "old"


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    old_mask = os.umask(0o022)
    try:
        write_text(tmp_path / "file.txt", "x")
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o644


def test_folders_are_made_and_nan_is_refused(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "x": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "c.json", {"x": float("nan")})
    assert not (tmp_path / "c.json").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_sha256_is_the_standard_one(tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_outputs_and_inputs(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(UserInputError, match=r"recipe .* does not exist"):
        check_readable(path, "recipe")
    path.write_text("")
    with pytest.raises(UserInputError, match="is empty"):
        check_readable(path, "recipe")
    with pytest.raises(UserInputError, match="--force"):
        check_output(path, force=False)
    assert check_output(path, force=True) == path
    with pytest.raises(UserInputError, match="is a folder"):
        check_output(tmp_path, force=True)


def test_many_writers_leave_one_whole_file(tmp_path):
    """Two processes that write the same file never leave a mixture."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from compress.files import write_text\n"
        "for _ in range(100): write_text(Path(sys.argv[1]), sys.argv[2] * 50000)\n"
    )
    path = tmp_path / "file"
    writers = [subprocess.Popen([sys.executable, "-c", code, path, c]) for c in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.read_text() in ("a" * 50000, "b" * 50000)
        time.sleep(0.001)
    assert list(tmp_path.iterdir()) == [path]


def killed_while_writing(path, manager="replacing", options=""):
    """Start a process that writes `path`, kill it, and return what it left."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        f"from compress.files import {manager}\n"
        f"with {manager}(Path(sys.argv[1]){options}) as part:\n"
        "    print(part, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    )
    part = Path(process.stdout.readline().strip())
    assert part.exists()
    process.kill()
    process.communicate()
    return part


@pytest.mark.parametrize("manager", ["replacing", "replacing_folder"])
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, manager):
    path, options = tmp_path / "out", ", foreign_in=lambda _: []" * (manager != "replacing")
    left = killed_while_writing(path, manager, options)
    assert left.exists()
    if manager == "replacing":
        write_text(path, "new")
    else:
        with replacing_folder(path, foreign_in=lambda _: []):
            pass
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_living_writer_holds_is_not_swept_nor_what_is_called_otherwise(tmp_path):
    (tmp_path / "below").mkdir()
    for name in (".mine.part", "x.abcdefgh.part", ".x.abcdefg.part", "below/.x.abcdefgh.part"):
        (tmp_path / name).write_text("somebody's")
    with replacing(tmp_path / "x") as held:
        held.write_text("half")
        sweep_parts(tmp_path)
        write_text(tmp_path / "x", "of another writer")
        assert held.read_text() == "half"
        sweep_parts(tmp_path, below=True)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {".mine.part", "x.abcdefgh.part", ".x.abcdefg.part", "below", "x"}


def foreign_in(folder):
    return [path.name for path in folder.iterdir() if path.name != "ours"]


def written_folder(path, content):
    with replacing_folder(path, foreign_in=foreign_in) as part:
        write_text(part / "ours", content)
    return path


def test_a_folder_is_replaced_where_all_in_it_is_ours(tmp_path):
    path = written_folder(tmp_path / "out", "old")
    assert (written_folder(path, "new") / "ours").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_with_something_of_anothers_is_not_touched(tmp_path):
    path = written_folder(tmp_path / "out", "old")
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserInputError, match=r"also holds thesis\.tex, which would be lost"):
        written_folder(path, "new")
    assert (path / "ours").read_text() == "old"
    assert (path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserInputError, match="is a file"):
        written_folder(tmp_path / "file", "new")


def test_what_is_put_there_meanwhile_is_kept_beside(tmp_path):
    path = written_folder(tmp_path / "out", "old")
    with replacing_folder(path, foreign_in=foreign_in):
        (path / "thesis.tex").write_text("years of work")
    assert list(path.iterdir()) == []
    (kept,) = tmp_path.glob(".out.old.superseded-1/thesis.tex")
    assert kept.read_text() == "years of work"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    path = written_folder(tmp_path / "out", "old")
    path.rename(tmp_path / ".out.old")  # as it lies then
    with pytest.raises(UnicodeEncodeError):
        written_folder(path, "\ud800")
    assert (path / "ours").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_moving_aside_counts_and_never_replaces(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "n").write_text(str(number))
        assert move_aside(tmp_path / "train") == tmp_path / f"train.superseded-{number}"
    assert {p.name: (p / "n").read_text() for p in tmp_path.iterdir()} == {
        f"train.superseded-{n}": str(n) for n in (1, 2, 3)
    }
    assert is_superseded(tmp_path / "train.superseded-12")
    assert not is_superseded(tmp_path / "train.superseded")


def test_only_what_is_known_as_ours_is_removed_and_links_never(tmp_path):
    (tmp_path / "real").mkdir()
    write_text(tmp_path / "real" / "file", "x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert not remove(tmp_path / "link", is_ours=lambda _: True)
    assert not remove(tmp_path / "real", is_ours=lambda _: False)
    assert (tmp_path / "link" / "file").read_text() == "x"
    assert remove(tmp_path / "real", is_ours=lambda path: (path / "file").exists())
    assert remove(tmp_path / "real", is_ours=lambda path: False)  # it is gone


REMOVES = {"unlink", "rmdir", "rmtree", "removedirs", "rename", "renames", "move", "truncate"}
OPENS = {"w", "wb", "w+", "wb+", "w+b"}
# These write into what `files` gave them to fill, or into the kernel's files.
MAY_WRITE = {
    "checkpoint/writing.py": {"open"},
    "data/image_cache.py": {"truncate"},
    "exits/replay.py": {"open"},
    "training/state.py": {"open"},
    "export/bundle.py": {"write_bytes"},
    "export/lower_file.py": {"write_bytes"},
    "export/onnx_file.py": {"write_bytes"},
    "benchmark/memory.py": {"write_text"},
    "runtime/probe.py": {"write_bytes"},
    "runtime/tensorrt_compiler.py": {"write_bytes"},
}


def removals_in(tree):
    """Give the calls of a module that may remove or replace a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        place = getattr(getattr(node.func, "value", None), "id", "")
        is_method = isinstance(node.func, ast.Attribute)
        # Path.replace takes one argument; that of a string two, that of dataclasses keywords
        replaces = name == "replace" and (
            place == "os" or (len(node.args) == 1 and not node.keywords)
        )
        opens = name == "open" and any(getattr(each, "value", "") in OPENS for each in node.args)
        writes = name in ("write_text", "write_bytes") and is_method
        removes = name in REMOVES or (place == "os" and name == "remove")
        if removes or replaces or opens or writes:
            yield name


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("shutil.rmtree(x)", ["rmtree"]),
        ("path.unlink(missing_ok=True)", ["unlink"]),
        ("os.replace(a, b)", ["replace"]),
        ("path.replace(other)", ["replace"]),
        ("open(path, 'w')", ["open"]),
        ("path.write_text('x')", ["write_text"]),
        ("text.replace('a', 'b'); replace(config, seed=1); write_text(path, 'x')", []),
        ("open(path); open(path, 'rb'); open(path, 'a')", []),
    ],
)
def test_the_search_for_removals_finds_them(code, found):
    assert list(removals_in(ast.parse(code))) == found


def test_nothing_else_removes_or_replaces_files():
    package = Path(compress.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        calls = set(removals_in(ast.parse(path.read_text(encoding="utf-8"))))
        if name != "files.py" and calls - MAY_WRITE.get(name, set()):
            found[name] = calls
    assert not found, "go through compress.files, which knows what is ours"
