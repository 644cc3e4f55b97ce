"""What this machine has, and what each part that is missing would make possible.

Versions are read from what pip wrote down, in milliseconds. What comes from elsewhere and often
does not load, CUDA and TensorRT, is tried: imported in a process of its own, so that one that is
broken, crashes the interpreter or hangs is found out. On request every package is tried so, which
takes half a minute: torch and what stands on it are slow to import. This process imports none of
them. No TensorRT runtime is made: without CUDA it may hand back a null object, and the next call
ends the interpreter.

It needs nothing but Python and numpy, Python 3.8 included, so that it answers on a bare device.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import compress
from compress.runtime.power.sources import FoundSources, find_sources
from compress.runtime.power.state import power_state

__all__ = ["Diagnosis", "Part", "diagnose", "look", "probe"]

SCHEMA = "compress.doctor/1"
TIMEOUT_S = 60.0  # of one import: torch on a cold disk takes its time

# What each part is for: read as "would enable …" where it is missing.
ENABLES = {
    "torch": "training, slimming, evaluating and exporting networks",
    "CUDA": "training, measuring and TensorRT engines on an NVIDIA GPU",
    "onnx": "exporting bundles",
    "onnxscript": "exporting bundles",
    "onnxsim": "simplifying exported graphs",
    "onnxruntime": "running bundles on the CPU, and checking what was exported",
    "tensorrt": "building engines for this GPU and running them",
    "tensorrt_rtx": "building engines on a machine without a GPU, to check that they build",
    "tensorrt_lean": "running engines that were built version-compatible, without the builder",
    "PIL": "reading pictures from files",
    "pydantic": "recipes",
    "accelerate": "training, on one or several processes or GPUs",
    "kornia": "augmentation in training",
    "torch_pruning": "slimming networks other than VGG and GFNet",
    "sklearn": "the built-in digits data set",
    "matplotlib": "figures",
    "safetensors": "checkpoints without pickles",
    "thop": "counting FLOPs by the rule of the published logs",
    "power": "measuring energy",
}

APART = ("CUDA", "tensorrt", "tensorrt_rtx", "tensorrt_lean", "power")  # from elsewhere than pip
TRIED = ("CUDA", "tensorrt", "tensorrt_rtx", "tensorrt_lean")
DISTRIBUTIONS = {  # of packages that have another name at pip; the first that is installed
    "PIL": ("pillow",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "sklearn": ("scikit-learn",),
    "torch_pruning": ("torch-pruning",),
}
LIBRARY = r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object"
MISSING_LIBRARIES = {  # what is known of libraries that importing a package asks for
    "libnvdla_compiler.so": (
        "JetPack 7.2's containers lack it: bind it from the host, such as with docker run -v "
        "/usr/lib/aarch64-linux-gnu/nvidia:/usr/lib/aarch64-linux-gnu/nvidia, or install "
        "nvidia-l4t-dla-compiler"
    ),
}
DETAILS = {
    "torch": "detail = 'CUDA build ' + module.version.cuda if module.version.cuda else 'CPU build'",
    "onnxruntime": "detail = ', '.join(module.get_available_providers())",
}
# The end of the output is ours: packages print what they like before it.
PROBE = (
    "import importlib, json, sys; module = importlib.import_module({name!r}); detail = ''; "
    "text = str(getattr(module, '__version__', '')); {detail}; "
    "sys.stdout.write('\\n' + json.dumps([text, detail]))"
)
CUDA_PROBE = (
    "import json, sys; from compress.runtime.cuda import probe_cuda; "
    "from compress.errors import CompressError\n"
    "try: device = probe_cuda()\n"
    "except CompressError as err: answer = ['', '', str(err)]\n"
    "else: answer = ['', device.name + ', compute capability ' + device.compute_capability]\n"
    "sys.stdout.write('\\n' + json.dumps(answer))"
)


@dataclass(frozen=True)
class Part:
    """Something that this machine has or not.

    Attributes:
        name: such as "onnxruntime".
        state: "ok", "missing", or "broken" where it is there and fails.
        version: or "".
        detail: what else is known: providers, the device, or what went wrong.
        enables: what it is for.
    """

    name: str
    state: str
    version: str
    detail: str
    enables: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        machine: cpu, cores (that this process may use), memory_gib, memory_free_gib (both None
            where they are not known), platform, python, toolkit (this package's version).
        parts: packages, CUDA and power sensors.
        rails: by kind of sensor the rails that it tells apart; those of `total` make up the total.
        total: by kind of sensor the rails of its total.
        state: board, power mode and clocks, where the machine tells them.
    """

    machine: dict[str, Any]
    parts: tuple[Part, ...]
    rails: dict[str, list[str]]
    total: dict[str, list[str]]
    state: dict[str, Any]

    def part(self, name: str) -> Part:
        """Return a part by its name; KeyError where there is none."""
        return {part.name: part for part in self.parts}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "parts": [asdict(part) for part in self.parts],
            "rails": self.rails,
            "total": self.total,
            "state": self.state,
        }

    def to_text(self) -> str:
        """Return a line on the machine and one for each part."""
        machine = self.machine
        memory = "memory not known"
        if machine["memory_gib"] is not None:
            free = machine["memory_free_gib"]
            memory = f"{machine['memory_gib']:.1f} GiB of memory"
            memory += "" if free is None else f" ({free:.1f} free)"
        lines = [
            f"machine  {machine['cpu']}, {machine['cores']} cores, {memory}",
            f"system   {machine['platform']}, Python {machine['python']}",
            f"toolkit  early-exit-compress {machine['toolkit']}",
        ]
        if "board" in self.state:
            mode = self.state.get("power_mode", "not known")
            lines.append(f"board    {self.state['board']}, power mode {mode}")
        lines += ["", *map(_line, self.parts)]
        if any(part.state == "missing" and part.name not in APART for part in self.parts):
            lines += [
                "",
                "what is missing of the toolkit: pip install 'early-exit-compress[toolkit]'",
            ]
        return "\n".join(lines)


def diagnose(root: Path = Path("/"), *, tries_all: bool = False) -> Diagnosis:
    """Look at this machine; takes a second or two, and raises nothing for what it finds.

    Args:
        root: of the file system that memory and power sensors are looked for in.
        tries_all: import every package, each in a process of its own; takes half a minute.
    """
    names = [name for name in ENABLES if name != "power"]
    ways = [probe if tries_all or name in TRIED else look for name in names]
    # A few at a time: together they would fill the memory of a small device.
    with ThreadPoolExecutor(max_workers=min(4, _cores())) as pool:
        parts = tuple(pool.map(lambda way, name: way(name), ways, names))
    found = find_sources(root)
    return Diagnosis(
        machine=_machine(root),
        parts=(*parts, _power_part(found)),
        rails={kind: list(source.rails) for kind, source in found.sources.items()},
        total={kind: list(source.total_of) for kind, source in found.sources.items()},
        state=power_state(root),
    )


def look(name: str) -> Part:
    """Return whether a package is installed, and which version; it is not imported.

    Args:
        name: of the package, such as "onnxruntime".
    """
    if not _is_there(name):
        return _part(name, "missing")
    versions = map(_version, DISTRIBUTIONS.get(name, (name,)))
    return _part(name, "ok", next(filter(None, versions), ""))


def probe(name: str, *, timeout_s: float = TIMEOUT_S) -> Part:
    """Import one package in a process of its own and return what came of it.

    Args:
        name: of the package, such as "onnxruntime", or "CUDA".
        timeout_s: after which it counts as broken.
    """
    if name != "CUDA" and not _is_there(name):
        return _part(name, "missing")
    code = CUDA_PROBE if name == "CUDA" else PROBE.format(name=name, detail=_detail(name))
    try:
        done = _run(code, timeout_s)
    except subprocess.TimeoutExpired:
        return _part(name, "broken", detail="importing it does not come to an end")
    except OSError as err:
        return _part(name, "broken", detail=f"it could not be tried ({err})")
    if done.returncode < 0:
        crash = f"importing it crashes Python ({_signal_name(-done.returncode)})"
        return _part(name, "broken", detail=crash)
    try:
        version, detail, *problem = json.loads(done.stdout.rpartition("\n")[2])
    except ValueError:
        reason = _with_remedy(_last_line(done.stderr)) or "importing it says nothing"
        return _part(name, "broken", detail=reason)
    if problem:
        return _part(name, "missing", detail=problem[0])
    return _part(name, "ok", version, detail)


def _version(distribution: str) -> str:
    """Return what pip installed, "" where the package is from elsewhere, such as the system."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _is_there(name: str) -> bool:
    """Whether a package can be found; it is not imported for that."""
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):  # half removed, or replaced by something odd
        return False


def _detail(name: str) -> str:
    return DETAILS.get(name, "pass")


def _run(code: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def _with_remedy(reason: str) -> str:
    """Return what went wrong, with the way out where the missing library is known."""
    found = re.search(LIBRARY, reason)
    known = found and next((MISSING_LIBRARIES[n] for n in MISSING_LIBRARIES if n in found[1]), None)
    return f"{reason}; {known}" if known else reason


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _part(name: str, state: str, version: str = "", detail: str = "") -> Part:
    return Part(name, state, version, detail, ENABLES.get(name, ""))


def _power_part(found: FoundSources) -> Part:
    if found.sources:
        detail = "; ".join(source.describe() for source in found.sources.values())
        return _part("power", "ok", detail=detail)
    return _part("power", "missing", detail="; ".join(found.problems.values()))


def _line(part: Part) -> str:
    known = ", ".join(text for text in (part.version, part.detail) if text)
    text = f"{part.state:<8} {part.name:<14} {known}".rstrip()
    return text if part.state == "ok" else f"{text}\n{'':<24}would enable {part.enables}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _machine(root: Path) -> dict[str, Any]:
    memory = _memory_kib(root)
    return {
        "cpu": _cpu_name(root),
        "cores": _cores(),
        "memory_gib": _gib(memory.get("MemTotal")),
        "memory_free_gib": _gib(memory.get("MemAvailable")),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "toolkit": compress.__version__,
    }


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):  # "Model" on a Jetson
            return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_kib(root: Path) -> dict[str, int]:
    memory = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.strip().partition(" ")[0]
        if number.isdigit():
            memory[name] = int(number)
    return memory


def _gib(kib: int | None) -> float | None:
    return None if kib is None else round(kib / (1 << 20), 2)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
