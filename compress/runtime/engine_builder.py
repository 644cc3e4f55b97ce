"""Build the engines of a bundle on the machine that will run them: `build_engines`.

All engines are built under temporary names; only then is the former `engines.json` removed, are the
engines renamed, and is the new `engines.json` written. A build that fails leaves the former set as
it was, and one that is killed leaves either that or no set at all.
"""

import importlib
import logging
import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Union

from compress.errors import ToolchainError, UserInputError
from compress.files import remove, replacing, sha256_of, sweep_parts
from compress.runtime.engines import (
    ENGINES,
    EngineFile,
    EngineSet,
    check_stamp,
    check_trust,
    read_engines,
    write_engines,
)
from compress.runtime.expected_rows import expected_rows
from compress.runtime.manifest import Manifest, read_manifest
from compress.runtime.tensorrt_compiler import TensorRTCompiler
from compress.runtime.trtexec import TrtexecCompiler, find_trtexec

__all__ = ["CHOICES", "build_engines"]

CHOICES = ("auto", "tensorrt", "tensorrt-rtx")
LARGEST_WORKSPACE_MIB = 1 << 20

Compiler = Union[TensorRTCompiler, TrtexecCompiler]

log = logging.getLogger(__name__)


def build_engines(
    bundle: Path,
    *,
    builder: str = "auto",
    force: bool = False,
    workspace_mib: Optional[int] = None,
    optimization_level: Optional[int] = None,
    progress: Optional[Callable[[int, int], None]] = None,
) -> EngineSet:
    """Build one engine for each segment of a bundle, for the GPU of this machine.

    A set that is there already and fits this machine is left alone, unless `force` is on.

    Args:
        bundle: its folder.
        builder: "tensorrt" (its Python module, else trtexec), "tensorrt-rtx", or "auto", the first
            of these that is installed.
        force: build anew, whatever is there.
        workspace_mib: device memory that a layer may use besides its tensors; None is all of it.
        optimization_level: 0 (built fast) to 5 (runs fast), where TensorRT has it (8.6 and newer);
            None is TensorRT's own default.
        progress: called with the number of engines built and of all, after each.

    Raises:
        UserInputError: the bundle, or the set of engines in it, cannot be used.
        UnsupportedModelError: TensorRT's parser refuses a segment, or understands other inputs or
            outputs than the manifest says.
        ToolchainError: no builder is installed, it has no GPU to build on, or it failed.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    compiler = _compiler(builder, workspace_mib, optimization_level)
    with _alone_in(bundle):
        if (bundle / ENGINES).exists() and not force:
            return _former_set(bundle, manifest, compiler)
        try:
            return _build_set(bundle, manifest, compiler, progress)
        except OSError as err:
            raise ToolchainError(
                f"the engines of {bundle} cannot be written ({err.strerror or err}); free space or "
                "give yourself permission to write there"
            ) from err


def _former_set(bundle: Path, manifest: Manifest, compiler: Compiler) -> EngineSet:
    engines = read_engines(bundle, manifest)
    check_trust(engines, bundle)
    check_stamp(
        engines,
        builder=compiler.builder,
        tensorrt_version=compiler.tensorrt_version,
        device=compiler.device,
    )
    log.info("the engines of %s fit this device and stay as they are; --force rebuilds", bundle)
    return engines


def _build_set(
    bundle: Path,
    manifest: Manifest,
    compiler: Compiler,
    progress: Optional[Callable[[int, int], None]],
) -> EngineSet:
    sweep_parts(bundle)  # of a build that was killed
    total = len(manifest.segments)
    files: List[EngineFile] = []
    log.info("building %d engines with %s %s", total, compiler.builder, compiler.tensorrt_version)
    with ExitStack() as staged:
        for segment, rows in zip(manifest.segments, expected_rows(manifest)):
            file = f"{segment.stem}.engine"
            part = staged.enter_context(replacing(bundle / file))
            start = time.perf_counter()
            compiler.compile(bundle, segment, (1, rows, manifest.batch[1]), part)
            files.append(EngineFile(file, sha256_of(part), segment.sha256))
            seconds, mib = time.perf_counter() - start, part.stat().st_size / 2**20
            log.info("%s (%d of %d): %.1f MiB in %.1f s", file, len(files), total, mib, seconds)
            if progress is not None:
                progress(len(files), total)
        # Until the last line there is now no set: none may claim engines that are half replaced.
        remove(bundle / ENGINES, is_ours=lambda path: True)  # --force names it
    engines = EngineSet(
        builder=compiler.builder,
        tensorrt_version=compiler.tensorrt_version,
        device=compiler.device,
        segments=tuple(files),
    )
    write_engines(engines, bundle)
    return engines


@contextmanager
def _alone_in(bundle: Path) -> Iterator[None]:
    """Hold the bundle's folder against other builds; the lock goes with the process."""
    import fcntl

    folder = os.open(bundle, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise UserInputError(
                f"another process is building the engines of {bundle}; wait until it is done"
            ) from err
        except OSError:  # some network file systems lock no folders
            log.debug("%s cannot be locked", bundle, exc_info=True)
        yield
    finally:
        os.close(folder)


def _compiler(builder: str, workspace_mib: Optional[int], level: Optional[int]) -> Compiler:
    """Return what turns an ONNX file into an engine, with its stamp as attributes."""
    _check_options(builder, workspace_mib, level)
    faults: List[str] = []
    if builder != "tensorrt-rtx":
        trt = _imported("tensorrt", faults)
        if trt is not None:
            return TensorRTCompiler(trt, "tensorrt", workspace_mib, level)
        trtexec = find_trtexec(workspace_mib=workspace_mib, optimization_level=level)
        if trtexec is not None:
            log.info("%s; %s builds instead", faults[0], trtexec.program)
            return TrtexecCompiler(trtexec)
        faults.append("trtexec is not found")
    if builder != "tensorrt":
        trt = _imported("tensorrt_rtx", faults)
        if trt is not None:
            return TensorRTCompiler(trt, "tensorrt_rtx", workspace_mib, level)
    raise ToolchainError(
        f"no builder of engines is installed ({'; '.join(faults)}); on a Jetson TensorRT is part "
        "of JetPack, and a virtual environment sees it when made with --system-site-packages; "
        "elsewhere: pip install tensorrt-rtx"
    )


def _check_options(builder: str, workspace_mib: Optional[int], level: Optional[int]) -> None:
    if builder not in CHOICES:
        raise UserInputError(f"builder is {builder!r}; expected one of {', '.join(CHOICES)}")
    if workspace_mib is not None and not 1 <= workspace_mib <= LARGEST_WORKSPACE_MIB:
        raise UserInputError(
            f"workspace is {workspace_mib} MiB; expected 1 to {LARGEST_WORKSPACE_MIB}"
        )
    if level is not None and not 0 <= level <= 5:
        raise UserInputError(f"optimization level is {level}; expected 0 to 5")


def _imported(module: str, faults: List[str]) -> Any:
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as err:  # the last two: its libraries do not load
        faults.append(f"importing {module} failed: {err}")
        return None
    if hasattr(trt, "Builder"):
        return trt
    faults.append(f"the package {module} is empty")  # as some placeholders are
    return None
