import argparse
import json
import os
import re
import subprocess
import sys

import pytest

from compress.cli import add_common_options, print_json, run_door
from compress.door_options import parse_positions
from compress.errors import (
    AccuracyError,
    CompressError,
    ToolchainError,
    UnsupportedModelError,
    UserInputError,
)
from compress.runtime.exit_spelling import path_of, spelled


def door(work, *arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="door")
    add_common_options(parser)
    return run_door(parser, work, list(arguments))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CompressError, 1),
        (UserInputError, 3),
        (UnsupportedModelError, 3),
        (ToolchainError, 4),
        (AccuracyError, 5),
        (KeyboardInterrupt, 130),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(capsys, error, code):
    def work(options: argparse.Namespace) -> None:
        raise error("x is 1; expected 2")

    assert door(work) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("door: ")
    assert len(err.splitlines()) == 1


def test_an_error_of_ours_is_seen_whole():
    def work(options: argparse.Namespace) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        door(work)


def test_a_missing_package_names_the_extra(tmp_path):
    file = tmp_path / "vgg16.pth"
    file.write_bytes(b"not looked at")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from compress.slim import main\n"
        f"sys.exit(main(['--ratio', '0.4', {str(file)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "torch is not installed" in done.stderr
    assert "[toolkit]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "import argparse, sys\n"
        "from compress.cli import run_door\n"
        "def work(options):\n"
        "    for i in range(100000): print(i)\n"
        "sys.exit(run_door(argparse.ArgumentParser(), work, []))"
    )
    reader = subprocess.run(
        f'{sys.executable} -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}',
        shell=True,
        executable="/bin/bash",
        env={"CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (reader.stdout, reader.stderr, reader.returncode) == ("0\n", "", 0)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "ascii:surrogateescape", "utf-8"])
@pytest.mark.parametrize("arguments", [[], ["-h"]])
def test_output_never_fails_for_its_characters(encoding, arguments):
    code = (
        "import argparse, sys\n"
        "from compress.cli import run_door\n"
        "def work(options):\n"
        r"    print('done: 3 \u2212 \u03b3 \udc80')"
        "\n"
        r"parser = argparse.ArgumentParser(prog='door', description='\u2265 \u03b3 done')"
        "\n"
        "sys.exit(run_door(parser, work, sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"done" in done.stdout
    if encoding == "utf-8" and not arguments:
        assert "3 \u2212 \u03b3 ?".encode() in done.stdout


def test_what_a_terminal_would_obey_is_escaped_in_errors(capsys):
    def work(options: argparse.Namespace) -> None:
        raise UserInputError("bundle a\x1b[2J\nb of a stranger: \u03b3")

    assert door(work) == 3
    assert capsys.readouterr().err == "door: error: bundle a\\x1b[2J\\nb of a stranger: \u03b3\n"


def test_json_refuses_what_is_not_json(capsys):
    print_json({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"a": float("nan")})


DOORS_OF_A_CHECKPOINT = (
    ("slim", "--ratio", "0.4"), ("adopt", "--image-size", "32"), ("evaluate", "--data", "digits"),
    ("finetune", "--data", "digits"), ("export_trt",), ("exits", "list"),
    ("exits", "train", "--data", "digits", "--at", "auto:2"),
    ("plan_exits", "--data", "digits", "--max-drop", "1"),
)  # fmt: skip


@pytest.mark.parametrize("words", DOORS_OF_A_CHECKPOINT, ids=" ".join)
def test_a_wrong_path_is_told_before_torch_is_imported(words):
    code = (
        "import sys\n"
        "from compress.__main__ import main\n"
        f"sys.argv = ['early-exit', *{words}, 'nowhere.pth']\n"
        "code = main()\n"
        "print('torch' in sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (3, "False"), done.stderr
    assert done.stderr.startswith(f"early-exit {words[0]}: error: ")
    assert "nowhere.pth" in done.stderr


def test_the_program_is_called_as_it_was_typed(monkeypatch, capsys):
    from compress.__main__ import main

    for program, shown in (("/usr/bin/early-exit", "early-exit slim"),
                           ("/x/compress/__main__.py", "python -m compress.slim")):  # fmt: skip
        monkeypatch.setattr(sys, "argv", [program, "slim", "-h"])
        with pytest.raises(SystemExit):
            main()
        out = capsys.readouterr().out
        assert f"usage: {shown} " in out
        assert f"  {shown} --ratio 0.4 vgg16.pth" in out
        assert "(default: None)" not in out
        assert "(default: 8)" in out


def test_the_version_is_told(monkeypatch, capsys):
    from compress.__main__ import main

    monkeypatch.setattr(sys, "argv", ["early-exit", "--version"])
    assert main() == 0
    assert re.fullmatch(r"early-exit-compress \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(("typed", "share"), [("40%", 0.4), ("0.4", 0.4)])
def test_a_share_may_be_a_percentage(typed, share):
    from compress.slim import _parser

    assert _parser().parse_args(["x.pth", "--ratio", typed]).ratio == [share]


def test_a_percentage_without_its_sign_is_guessed():
    from compress.slimming.selection import check_ratio

    with pytest.raises(UserInputError, match=r"--ratio is 40.*; .* did you mean 0\.4\?"):
        check_ratio(40)


@pytest.mark.parametrize(
    ("typed", "positions"),
    [
        ("7,8, 9", (7, 8, 9)),
        ("blocks.7,8", (7, 8)),
        ("layer1.8,layer2.4", ("layer1.8", "layer2.4")),
        ("blocks.7.mlp", ("blocks.7.mlp",)),
        ("features.14,0", ("features.14", 0)),
        ("blocks.07,07", ("blocks.07", "07")),
    ],
)
def test_positions_of_exits_are_spelled_as_tables_spell_them(typed, positions):
    found = parse_positions(typed, "--exits")
    assert found == positions
    assert tuple(spelled(path_of(each)) for each in found) == positions
    assert parse_positions(None, "--exits") is None


@pytest.mark.parametrize("typed", ["", "7,,8", "layer1 layer2", "x" * 201, "a\x1b[2J", ","])
def test_positions_that_cannot_be(typed):
    with pytest.raises(UserInputError, match=r"--at is '.*expected blocks or paths of modules"):
        parse_positions(typed, "--at")
