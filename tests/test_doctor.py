"""The door of the doctor: what was found, as text or one JSON object, and exit code 0."""

import json
import subprocess
import sys

import pytest

from compress import doctor
from compress.measure import doctor as library
from compress.measure.doctor import Diagnosis, Part


@pytest.fixture
def found(monkeypatch):
    machine = {
        "cpu": "Some CPU",
        "cores": 2,
        "memory_gib": 8.0,
        "memory_free_gib": None,
        "platform": "Linux",
        "python": "3.8.10",
        "toolkit": "0.1.0",
    }
    parts = (
        Part("torch", "ok", "2.13.0", "CPU build", "training"),
        Part("tensorrt", "missing", "", "", "building engines"),
        Part("onnx", "broken", "", "libfoo is missing", "exporting bundles"),
    )
    diagnosis = Diagnosis(machine, parts, {}, {}, {})
    monkeypatch.setattr(library, "diagnose", lambda *, tries_all: diagnosis)
    return diagnosis


def test_text_says_what_is_missing_and_what_it_would_enable(found, capsys):
    assert doctor.main([]) == 0  # what is missing or broken is no error
    out = capsys.readouterr().out
    assert out == found.to_text() + "\n"
    assert "would enable building engines" in out


def test_json_is_one_object(found, capsys):
    assert doctor.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == found.to_dict()
    assert told["schema"] == "compress.doctor/1"


def test_help_and_door_import_nothing_heavy():
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'onnx'): sys.modules[name] = None\n"
        "import compress.doctor as door\n"
        "door.main(['-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
