import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.measure import versions as versions_module
from compress.measure.versions import hardware, versions


def test_versions_are_those_of_the_imported_packages() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["early-exit-compress"]


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions_module, "PACKAGES", ("numpy", "no-such-package"))
    assert "no-such-package" not in versions()


def test_versions_import_nothing_heavy() -> None:
    code = "import sys; from compress.measure.versions import versions; versions(); "
    code += "print('torch' in sys.modules or 'thop' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_hardware_names_no_person_and_no_host() -> None:
    told = json.dumps({**hardware(), **versions()})
    words = told.replace('"', " ").split()
    assert platform.node() not in words
    assert getpass.getuser() not in words
    assert hardware()["torch_threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n", "Some CPU @ 2.0GHz"),
        ("Model\t\t: NVIDIA Orin\n", "NVIDIA Orin"),
    ],
)
def test_the_cpu_model_is_read(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(versions_module, "CPU_INFO", tmp_path / "cpuinfo")
    assert hardware()["cpu"] == expected
