"""Peak memory of a network, in a process of its own.

What else a process holds, the images of the data and the other networks, would count in this one.
So a child imports what it needs, runs something tiny, reads its resident set, opens the network and
runs images one by one. The highest resident set from there on, less what it was before, is the
network's: weights, buffers, activations, and pages of libraries that it is the first to touch. What
it holds on a graphics card is not in it.
"""

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.benchmark.lineup import open_subject
from compress.benchmark.subject import OpenOptions, SubjectSpec
from compress.errors import ToolchainError
from compress.models import build
from compress.runtime.gather_model import gather_model

__all__ = ["HOW", "PeakMemory", "peak_memory", "read_peak"]

HOW = (
    "highest resident set of a process of its own while it opens the network and runs images one "
    "by one, less what it was before; memory of a graphics card is not in it"
)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT_S = 900.0
CODE = "from compress.benchmark.memory import _child; _child()"
IMAGES = 16  # more do not make the peak higher


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Resident set of a process, MiB.

    Attributes:
        before_mib: before the network was opened, all packages imported.
        peak_mib: the highest from there on.
    """

    before_mib: float
    peak_mib: float

    @property
    def net_mib(self) -> float:
        """What the network takes."""
        return max(0.0, self.peak_mib - self.before_mib)

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return {"before": self.before_mib, "peak": self.peak_mib, "net": self.net_mib}


def peak_memory(spec: SubjectSpec, options: OpenOptions, images: Tensor) -> PeakMemory:
    """Open a network in a child process, run images through it, and return what that took.

    Args:
        spec: the network.
        options: as it is opened here.
        images: (N, C, H, W) float32, normalised; the first few of them run.

    Raises:
        ToolchainError: this machine does not tell (there is no /proc), or the child failed.
    """
    if not STATUS.exists():
        raise ToolchainError(
            f"peak memory is read from {STATUS}, which this system does not have; expected Linux"
        )
    given = pickle.dumps((spec, options, images[:IMAGES].clone()))
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            input=given,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        figures = json.loads(done.stdout.decode().rpartition("\n")[2])
        return PeakMemory(before_mib=figures[0], peak_mib=figures[1])
    except (OSError, subprocess.TimeoutExpired, ValueError) as err:
        said = "" if isinstance(err, OSError | subprocess.TimeoutExpired) else done.stderr.decode()
        reason = (said.strip().splitlines() or [str(err)])[-1]
        raise ToolchainError(
            f"peak memory of {spec.path} could not be measured in a process of its own "
            f"({reason:.200}); leave it out with --no-memory"
        ) from err


def read_peak(status: str) -> Mapping[str, float]:
    r"""Return the resident set now and at its highest, MiB, from the text of /proc/…/status.

    >>> read_peak("VmHWM:     2048 kB\nVmRSS:     1024 kB\n")
    {'VmHWM': 2.0, 'VmRSS': 1.0}
    """
    found = re.findall(r"^(VmHWM|VmRSS):\s*(\d+) kB$", status, re.MULTILINE)
    return {name: int(kib) / 1024 for name, kib in found}


def _child() -> None:
    """Read what to do from stdin, which this package wrote, and print two figures."""
    spec, options, images = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(options.threads)
    if spec.path.is_dir():
        _warm_up_onnxruntime()
    else:
        _warm_up_torch()
    _forget_peak()
    before = read_peak(STATUS.read_text())["VmRSS"]
    subject = open_subject(spec, "child", options)
    for image in images.split(1):
        subject.run(image)
    peak: Any = read_peak(STATUS.read_text())["VmHWM"]
    sys.stdout.write("\n" + json.dumps([before, peak]))


def _warm_up_torch() -> None:
    """Let torch import and touch what any network needs, which is not the network's."""
    tiny: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 8,
        "width": 8,
        "depth": 2,
        "num_classes": 2,
        "exits": [0],
    }
    with torch.device("meta"):  # as checkpoints are opened
        build("gfnet_dynn", tiny)
    build("gfnet_dynn", tiny).eval()(torch.zeros(1, 3, 16, 16))


def _warm_up_onnxruntime() -> None:
    """The same for ONNX Runtime, where it is installed: a bundle of engines runs without it."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return
    runtime.InferenceSession(gather_model("float32", (1,)), providers=["CPUExecutionProvider"])


def _forget_peak() -> None:
    """Imports may have peaked; where the kernel does not let go of that, it counts."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return
