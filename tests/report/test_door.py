"""python -m compress.report: files, output, exit codes."""

import json
import subprocess
import sys

import pytest

from compress.report import main
from compress.report.page import _template
from tests.report.small_run import write_run


def test_one_run_gets_its_files_beside_its_steps(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main([str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (run / "MODEL_CARD.md").read_text(encoding="utf-8").startswith("# small")


def test_a_second_report_is_the_same_to_the_byte(tmp_path):
    run = write_run(tmp_path / "run")
    contents = []
    for _ in range(2):
        assert main([str(run), "-q"]) == 0
        contents.append([(run / name).read_bytes() for name in ("report.html", "MODEL_CARD.md")])
    assert contents[0] == contents[1]


def test_several_runs_are_written_where_they_are_asked_for(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name)) for name in "ab"]
    assert main([*runs, "-o", str(tmp_path / "both"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "compress.report/1"
    assert told["html"] == str(tmp_path / "both" / "report.html")
    assert "2 runs compared" in (tmp_path / "both" / "report.html").read_text(encoding="utf-8")


def test_what_is_missing_is_told_on_stderr(tmp_path, capsys):
    run = write_run(tmp_path, **{"thin/compare/table.json": "{"})
    assert main([str(run)]) == 0
    assert "note: thin/compare/table.json is damaged" in capsys.readouterr().err


def test_a_folder_without_steps_is_bad_input(tmp_path, capsys):
    assert main([str(tmp_path)]) == 3
    assert "no finished step" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["compress.report", "compress.report.__main__"])
def test_help_needs_no_package_besides_the_ground(module):
    heavy = ("numpy", "torch", "jinja2", "matplotlib", "onnx")
    code = (
        f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"
        f"import importlib\nimportlib.import_module({module!r}).main(['-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_a_missing_jinja_is_a_missing_tool_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    _template.cache_clear()
    run = write_run(tmp_path / "run")
    assert main([str(run), "-o", str(tmp_path / "out")]) == 4
    assert "toolkit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
