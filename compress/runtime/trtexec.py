"""Build engines with NVIDIA's `trtexec`, where TensorRT came without its Python module.

Only options that trtexec has had from TensorRT 8.5 to 11 are taken for granted. The others are
looked up in the help of the installed program: `--stronglyTyped` (10 and newer) or else `--fp16`
and `--int8`, which 11 no longer has, with the layers that stay in float32 (see
compress.runtime.onnx_float32); `--skipInference` or else `--buildOnly` (8.5).
"""

import logging
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import FrozenSet, List, Optional, Tuple

from compress.errors import ToolchainError, UnsupportedModelError
from compress.runtime.build_remedy import remedy_for
from compress.runtime.cuda import DeviceInfo
from compress.runtime.expected_rows import expected_rows
from compress.runtime.manifest import Manifest, Segment
from compress.runtime.onnx_float32 import float32_nodes

__all__ = [
    "TIMING_CACHE",
    "Batch",
    "Trtexec",
    "TrtexecCompiler",
    "find_trtexec",
    "keeps_float32",
    "weak_precisions",
]

TIMING_CACHE = "timing.cache"
BESIDE_PATH = "/usr/src/tensorrt/bin"  # where JetPack and NVIDIA's Debian packages put it
HELP_SECONDS = 300.0  # the first start on a Jetson reads its libraries from a card

Batch = Tuple[int, int, int]  # images at a time: fewest, expected, most

log = logging.getLogger(__name__)


def weak_precisions(segment: Segment) -> List[str]:
    """Return what a TensorRT that does not type strongly must be allowed besides float32."""
    halves = any(spec.dtype == "float16" for spec in segment.inputs + segment.outputs)
    allowed = ["fp16"] if halves or segment.precision == "fp16" else []
    return [*allowed, "int8"] if segment.precision == "int8" else allowed


def keeps_float32(segment: Segment) -> bool:
    """Whether a TensorRT that does not type strongly must be told what stays in float32.

    With int8 it need not: what lies between Q and DQ is float32 in the file, and meant to be int8.
    """
    return weak_precisions(segment) == ["fp16"]


@dataclass(frozen=True)
class Trtexec:
    """An installed trtexec.

    Attributes:
        program: its path.
        version: of TensorRT, such as "8.5.2".
        options: that it knows, such as "--fp16".
        workspace_mib: device memory that a layer may use besides its tensors; None is all of it.
        optimization_level: 0 to 5; None is TensorRT's own default.
        shares_profiles: whether it must be told that several contexts use one profile (8.6).
    """

    program: str
    version: str
    options: FrozenSet[str]
    workspace_mib: Optional[int] = None
    optimization_level: Optional[int] = None
    shares_profiles: bool = False

    def command(self, bundle: Path, segment: Segment, batch: Batch, engine: Path) -> List[str]:
        """Return the command that builds the engine of one segment into the file `engine`."""
        return [
            self.program,
            f"--onnx={bundle / segment.file}",
            f"--saveEngine={engine}",
            f"--timingCacheFile={bundle / TIMING_CACHE}",
            "--profilingVerbosity=detailed",
            "--skipInference" if "--skipInference" in self.options else "--buildOnly",
            *self._precisions(bundle, segment),
            *_shapes(segment, batch),
            *self._limits(),
        ]

    def commands(self, bundle: Path, manifest: Manifest) -> List[str]:
        """Return one line for a shell for each segment."""
        bundle = Path(bundle)
        return [
            " ".join(map(shlex.quote, self.command(bundle, segment, batch, engine)))
            for segment, rows in zip(manifest.segments, expected_rows(manifest))
            for batch in [(1, rows, manifest.batch[1])]
            for engine in [bundle / f"{segment.stem}.engine"]
        ]

    def _precisions(self, bundle: Path, segment: Segment) -> List[str]:
        if "--stronglyTyped" in self.options:
            return ["--stronglyTyped"]
        asked = [f"--{precision}" for precision in weak_precisions(segment)]
        sharing = ["--preview=+profileSharing0806"] if self.shares_profiles else []
        kept = self._in_float32(bundle, segment) if keeps_float32(segment) else []
        return [*(option for option in asked if option in self.options), *kept, *sharing]

    def _in_float32(self, bundle: Path, segment: Segment) -> List[str]:
        """Return what keeps the nodes in float32 that the file has in it."""
        if "--layerPrecisions" not in self.options:
            log.warning("trtexec %s keeps no layer in float32", self.version)
            return []
        nodes = float32_nodes(bundle / segment.file)
        sayable = [node for node in nodes if node.name and not set(node.name) & set(",:*")]
        log.info(
            "%s: %d of %d layers that give float32 are kept in it",
            *(segment.file, len(sayable), len(nodes)),
        )
        if not sayable:
            return []
        single = [node for node in sayable if node.outputs == 1]  # TopK gives places too
        pure = [node for node in sayable if node.is_pure]
        sides = {"--layerPrecisions": pure, "--layerOutputTypes": single}
        return ["--precisionConstraints=obey"] + [
            f"{option}={','.join(f'{node.name}:fp32' for node in side)}"
            for option, side in sides.items()
            if side
        ]

    def _limits(self) -> List[str]:
        limits = []
        if self.workspace_mib is not None:
            limits.append(f"--memPoolSize=workspace:{self.workspace_mib}")  # MiB where no unit is
        if self.optimization_level is not None:
            if "--builderOptimizationLevel" in self.options:
                limits.append(f"--builderOptimizationLevel={self.optimization_level}")
            else:
                log.warning("trtexec %s has no optimization level", self.version)
        return limits


def _shapes(segment: Segment, batch: Batch) -> List[str]:
    """Return the range of batches; trtexec refuses one for a file whose batch is fixed."""
    if batch[0] == batch[2]:
        return []
    options = []
    for option, size in zip(("min", "opt", "max"), batch):
        shapes = (f"{s.file_name}:{'x'.join(map(str, (size, *s.shape)))}" for s in segment.inputs)
        options.append(f"--{option}Shapes={','.join(shapes)}")
    return options


def find_trtexec(
    *, workspace_mib: Optional[int] = None, optimization_level: Optional[int] = None
) -> Optional[Trtexec]:
    """Find trtexec on PATH or where JetPack puts it, and ask what it is; None if there is none.

    Raises:
        ToolchainError: it is there, but does not start or is no trtexec.
    """
    program = shutil.which("trtexec") or shutil.which("trtexec", path=BESIDE_PATH)
    if program is None:
        return None
    try:
        done = _run([program, "--help"], timeout=HELP_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ToolchainError(f"{program} does not start ({err}); repair TensorRT") from err
    return Trtexec(
        program=program,
        version=_version(program, done.stdout),
        options=frozenset(re.findall(r"^\s+(--\w+)", done.stdout, re.MULTILINE)),
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        shares_profiles="profileSharing0806" in done.stdout,
    )


def _version(program: str, told: str) -> str:
    """Read the banner, in which v8502 is 8.5.2, v100300 is 10.3.0, and 11 writes 11.1.0.106."""
    found = re.search(r"\[TensorRT v(?:(\d+\.[\d.]*\d)|(\d)(\d)(\d\d)|(\d\d)(\d\d)(\d\d))\]", told)
    if found is None:
        raise ToolchainError(
            f"{program} does not tell its version (it printed {told[:80]!r}); expected NVIDIA's "
            "trtexec of TensorRT 8.5 or newer"
        )
    if found[1]:
        return found[1]
    return ".".join(str(int(part)) for part in found.groups()[1:] if part)


class TrtexecCompiler:
    """Builds with trtexec.

    Attributes:
        builder: "tensorrt".
        tensorrt_version: of trtexec.
        device: the GPU that it builds on and for.
    """

    builder = "tensorrt"

    def __init__(self, trtexec: Trtexec) -> None:
        """Probe the GPU that trtexec will use, the first.

        Raises:
            ToolchainError: there is none.
        """
        from compress.runtime.cuda import probe_cuda

        self.device: Optional[DeviceInfo] = probe_cuda()
        self.tensorrt_version = trtexec.version
        self._trtexec = trtexec

    def compile(self, bundle: Path, segment: Segment, batch: Batch, engine: Path) -> None:
        """Build the engine of one segment into the file `engine`.

        Raises:
            UnsupportedModelError: its parser refuses the segment.
            ToolchainError: it failed otherwise.
        """
        command = self._trtexec.command(bundle, segment, batch, engine)
        log.debug("%s", " ".join(command))
        done = _run(command, timeout=None)
        log.debug("%s", done.stdout)
        if done.returncode == 0 and engine.stat().st_size:
            return
        faults = re.findall(r"\[E\]\s*(.+)", done.stdout)
        told = faults[0] if faults else f"exit code {done.returncode}; -v shows what it printed"
        if "Failed to parse" in done.stdout:
            raise UnsupportedModelError(
                f"trtexec's parser refuses {segment.file}: {told}; export the bundle again for "
                f"TensorRT {self.tensorrt_version} (--target)"
            )
        raise ToolchainError(
            f"trtexec {self.tensorrt_version} could not build the engine of {segment.file} "
            f"({told}); {remedy_for(told)}"
        )


def _run(command: List[str], timeout: Optional[float]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
