"""The doctor: right on this machine, unharmed by packages that are missing, broken or deadly."""

import json
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from compress.measure import doctor
from compress.measure.doctor import ENABLES, diagnose, look, probe
from tests.runtime.power_trees import agx_orin, write

NOTHING = subprocess.CompletedProcess([], 0, '\n["1.0", ""]', "")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Return a function that puts a package of this source first on the path."""

    def add(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    monkeypatch.syspath_prepend(str(tmp_path))
    return add


@pytest.fixture
def few(monkeypatch):
    """Only what is quick to import."""
    kept = ("numpy", "tensorrt", "CUDA", "power")
    monkeypatch.setattr(doctor, "ENABLES", {name: f"what {name} is for" for name in kept})


def test_a_package_that_is_there():
    part = probe("numpy")
    assert (part.state, part.version) == ("ok", metadata.version("numpy"))


def test_providers_of_onnx_runtime():
    part = probe("onnxruntime")
    assert part.state == "ok"
    assert "CPUExecutionProvider" in part.detail


@pytest.mark.parametrize(
    ("source", "state", "detail"),
    [
        pytest.param(
            "raise ImportError('libfoo.so is missing')", "broken", "libfoo.so", id="raises"
        ),
        pytest.param("import os; os.abort()", "broken", "crashes Python (SIGABRT)", id="crashes"),
        pytest.param("import os; os._exit(0)", "broken", "says nothing", id="leaves silently"),
        pytest.param("import time; time.sleep(60)", "broken", "come to an end", id="hangs"),
        pytest.param("def", "broken", "SyntaxError", id="no Python"),
        pytest.param("print('hello'); __version__ = '1.2'", "ok", "", id="chatters"),
        pytest.param("__version__ = None", "ok", "", id="odd version"),
        pytest.param("", "ok", "", id="no version"),
    ],
)
def test_whatever_a_package_does_is_found_out(packages, source, state, detail):
    packages("odd_package", source)
    part = probe("odd_package", timeout_s=3 if "sleep" in source else 60)
    assert part.state == state
    assert detail in part.detail
    assert "odd_package" not in sys.modules


@pytest.mark.parametrize("name", ["torch", "PIL", "sklearn", "torch_pruning", "onnxruntime"])
def test_a_version_is_that_of_pip_and_nothing_is_imported(name, monkeypatch):
    monkeypatch.setattr(doctor, "_run", lambda *a: pytest.fail("a process was started"))
    distribution = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(name, name)
    part = look(name)
    assert (part.state, part.version) == ("ok", metadata.version(distribution))


def test_a_package_of_the_system_has_no_version(packages):
    packages("odd_package", "raise ImportError('never imported')")
    assert (look("odd_package").state, look("odd_package").version) == ("ok", "")
    assert look("no_such_package").state == "missing"


def test_a_machine_is_known_within_seconds_and_only_tensorrt_is_imported(monkeypatch):
    tried = []
    monkeypatch.setattr(doctor, "_run", lambda code, timeout_s: tried.append(code) or NOTHING)
    parts = diagnose().parts
    assert {part.name for part in parts} == set(ENABLES)
    assert all("tensorrt" in code or "cuda" in code for code in tried)
    del tried[:]
    diagnose(tries_all=True)
    assert any("torch" in code for code in tried)


def test_the_library_that_jetpack_7_2_lacks_is_named_with_the_way_out(packages):
    message = "libnvdla_compiler.so: cannot open shared object file: No such file or directory"
    packages("tensorrt", f"raise ImportError({message!r})")
    part = probe("tensorrt")
    assert part.state == "broken"
    assert part.detail.startswith(f"ImportError: {message}; JetPack 7.2's containers lack it: bind")
    packages("tensorrt", "raise ImportError('libother.so: cannot open shared object file')")
    assert probe("tensorrt").detail.endswith("libother.so: cannot open shared object file")


def test_a_package_that_is_not_there():
    part = probe("no_such_package")
    assert (part.state, part.version, part.detail) == ("missing", "", "")


def test_a_package_whose_place_is_taken_by_something_odd(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", object())
    assert probe("tensorrt").state == "missing"


def test_tensorrt_is_imported_and_none_of_its_runtimes_is_made(packages):
    packages(
        "tensorrt",
        "import os\n__version__ = '10.3.0'\n"
        "class Runtime:\n    def __init__(self, *a): os.abort()\n"
        "class Builder(Runtime): pass\n",
    )
    part = probe("tensorrt")
    assert (part.state, part.version) == ("ok", "10.3.0")


def test_a_process_that_cannot_be_started_is_told(monkeypatch):
    def refuse(code, timeout_s):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(doctor, "_run", refuse)
    part = probe("CUDA")
    assert part.state == "broken"
    assert "Cannot allocate memory" in part.detail


def test_this_machine(few):
    diagnosis = diagnose()
    assert diagnosis.machine["cores"] == len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert diagnosis.machine["memory_gib"] == pytest.approx(memory, abs=0.1)
    assert diagnosis.machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert diagnosis.part("numpy").state == "ok"
    expected = "ok" if util.find_spec("tensorrt") else "missing"
    assert diagnosis.part("tensorrt").state == expected
    import torch

    assert (diagnosis.part("CUDA").state == "ok") == torch.cuda.is_available()
    value = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert value["schema"] == "compress.doctor/1"
    assert [part["name"] for part in value["parts"]] == [*doctor.ENABLES]


def test_a_machine_without_sensors_says_what_was_looked_for(few, tmp_path):
    diagnosis = diagnose(tmp_path)
    power = diagnosis.part("power")
    assert power.state == "missing"
    assert "INA3221" in power.detail
    assert diagnosis.machine["memory_gib"] is None
    text = diagnosis.to_text()
    assert "memory not known" in text
    assert "would enable what power is for" in text


def test_a_jetson(few, tmp_path):
    agx_orin(tmp_path)
    write(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/cpuinfo": "processor : 0\nModel : ARMv8",
            "proc/meminfo": "MemTotal: 31457280 kB\nMemAvailable: 15728640 kB",
            "var/lib/nvpmodel/status": "pmode:0000",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >",
        },
    )
    diagnosis = diagnose(tmp_path)
    assert diagnosis.rails["jetson"][-1] == "VDDQ_VDD2_1V8AO"
    assert diagnosis.total["jetson"] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    text = diagnosis.to_text()
    assert "NVIDIA Jetson AGX Orin Developer Kit, power mode MAXN" in text
    assert "30.0 GiB of memory (15.0 free)" in text
    assert "jetson-ina3221: VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in text


def test_every_part_says_what_it_would_enable():
    assert all(ENABLES.values())
    assert {"torch", "CUDA", "onnxruntime", "tensorrt", "tensorrt_rtx", "power"} <= set(ENABLES)


def test_the_doctor_itself_needs_no_heavy_package():
    heavy = ("torch", "onnx", "onnxruntime", "PIL", "tqdm", "pydantic", "sklearn", "matplotlib")
    code = (
        f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"
        "from compress.measure import doctor\n"
        "doctor.ENABLES = {'no_such_package': 'x', 'power': 'y'}\n"
        "print(doctor.diagnose().to_text())"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "missing  no_such_package" in done.stdout
