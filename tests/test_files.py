import hashlib
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from compress.errors import UserInputError
from compress.files import (
    check_output,
    check_readable,
    sha256_of,
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
