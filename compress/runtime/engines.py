"""The engines of a bundle: which files they are, and what they were built from and for.

`engines.json` stands in the folder of the bundle, beside `segment_0.engine` … `segment_n.engine`.
It is removed before the first engine of a set is put in place and written after the last: where it
stands, the set is whole. An engine is machine code for one TensorRT and one GPU, so its stamp is
compared before TensorRT sees a byte of it.

An engine of a stranger is not loaded unless that is asked for: see compress.runtime.trust.

As with the manifest, the file may come from a stranger: names are plain names inside the folder,
texts are short and printable, and an engine is used only after its sha256.
"""

import json
import logging
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from compress.errors import UserInputError
from compress.files import check_readable, sha256_of, write_json
from compress.runtime.cuda import DeviceInfo
from compress.runtime.json_values import count, number
from compress.runtime.manifest import Manifest
from compress.runtime.trust import MARK, is_marked_here, mark_of

__all__ = [
    "BUILDERS",
    "ENGINES",
    "EngineFile",
    "EngineSet",
    "check_stamp",
    "check_trust",
    "read_engines",
    "write_engines",
]

FORMAT = "compress.engines/1"
ENGINES = "engines.json"
BUILDERS = ("tensorrt", "tensorrt_rtx")
MAX_BYTES = 1 << 20  # a bundle has a dozen segments at most; each takes 200 bytes here

SHA256 = r"[0-9a-f]{64}"
VERSION = r"\d{1,6}(\.\d{1,6}){1,4}[\w.+-]{0,32}"
CAPABILITY = r"\d{1,3}\.\d{1,3}"
MAX_MEMORY_GIB = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineFile:
    """The engine of one segment.

    Attributes:
        file: its name in the folder of the bundle, such as "segment_0.engine".
        sha256: of that file.
        onnx_sha256: of the ONNX file that it was built from.
    """

    file: str
    sha256: str
    onnx_sha256: str


@dataclass(frozen=True)
class EngineSet:
    """The engines of all segments of a bundle, built together.

    Attributes:
        builder: "tensorrt" or "tensorrt_rtx".
        tensorrt_version: of the builder, such as "10.3.0.30", "8.5.2" or "1.7.1.116".
        device: the GPU that they were built on; None where they were built without one, for every
            GPU that the builder supports.
        segments: in the order of the network.
        is_ours: whether this user built them on this machine, see compress.runtime.trust; of a set
            that is written it is always so.
    """

    builder: str
    tensorrt_version: str
    device: Optional[DeviceInfo]
    segments: Tuple[EngineFile, ...]
    is_ours: bool = field(default=True, compare=False)

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        device = self.device
        return {
            "format": FORMAT,
            "builder": self.builder,
            "tensorrt_version": self.tensorrt_version,
            "compute_capability": None if device is None else device.compute_capability,
            "device_name": None if device is None else device.name,
            "multiprocessors": None if device is None else device.multiprocessors,
            "memory_gib": None if device is None else device.memory_gib,
            "clock_mhz": None if device is None else device.clock_mhz,
            "segments": [asdict(segment) for segment in self.segments],
        }


def write_engines(engines: EngineSet, bundle: Path) -> None:
    """Write `engines.json`, whole or not at all, checked as a reader will, and marked as ours."""
    value = json.loads(json.dumps(engines.to_dict(), allow_nan=False))
    _parse(value)
    mark = mark_of(value)
    write_json(Path(bundle) / ENGINES, value if mark is None else {**value, MARK: mark})


def read_engines(bundle: Path, manifest: Manifest, *, check_files: bool = True) -> EngineSet:
    """Read and check which engines a bundle has.

    Args:
        bundle: its folder.
        manifest: of this bundle.
        check_files: also compare the sha256 of every engine.

    Raises:
        UserInputError: it has none, they are damaged or of another version of this file, one is
            missing, altered or built from another ONNX than the manifest names.
    """
    path = Path(bundle) / ENGINES
    again = _again(bundle)
    if not path.exists():
        raise UserInputError(
            f"bundle {bundle} has no {ENGINES}; build its engines with: "
            f"python -m compress.build_engines {bundle}"
        )
    check_readable(path, "list of engines")
    try:
        engines = _parse(_read_json(path, again))
    except (KeyError, TypeError, ValueError, RecursionError) as err:
        missing = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        raise UserInputError(
            f"list of engines {path} cannot be used ({missing}); it is damaged, so {again}"
        ) from err
    _check_sources(engines, manifest, bundle)
    if check_files:
        for engine in engines.segments:
            _check_file(Path(bundle), engine)
    return engines


def check_stamp(
    engines: EngineSet,
    *,
    builder: str,
    tensorrt_version: str,
    device: Optional[DeviceInfo],
) -> None:
    """Return when engines fit the TensorRT and the GPU at hand.

    Versions are compared in the parts that both have: "8.5.2", which is all that trtexec tells,
    fits "8.5.2.2". A GPU of another name, capability, number of multiprocessors or memory does not
    fit: an AGX Orin and an Orin Nano have the first two alike. Another clock is told in the log, as
    engines run there, though others may be faster. What is None, here or in the stamp, fits.

    Raises:
        UserInputError: they were built for another TensorRT or another GPU.
    """
    built = f"{engines.builder} {engines.tensorrt_version}"
    here = f"{builder} {tensorrt_version}"
    if engines.builder != builder or not _same_version(engines.tensorrt_version, tensorrt_version):
        raise _misfit(built, here)
    if engines.device is None or device is None:
        return
    if not _same_gpu(engines.device, device):
        raise _misfit(_described(engines.device), _described(device))
    clocks = engines.device.clock_mhz, device.clock_mhz
    if _apart(*clocks, share=0.1):
        log.warning(
            "the engines were built at a clock of up to %s MHz, this device has %s now; build them "
            "again in this power mode, where other kernels may be faster",
            *clocks,
        )


def check_trust(engines: EngineSet, bundle: Path) -> None:
    """Return when this user built the engines on this machine.

    Raises:
        UserInputError: they did not: what such a file does when TensorRT loads it is up to its
            author.
    """
    if not engines.is_ours:
        raise UserInputError(
            f"the engines of bundle {bundle} were not built here, by this user; an engine is "
            "machine code, so expected ones with the mark of this machine: build them with "
            f"python -m compress.build_engines --force {bundle}, or give --trust-engines where "
            "you trust who built them"
        )


def _misfit(built: str, here: str) -> UserInputError:
    return UserInputError(
        f"the engines of the bundle were built for {built}, this device has {here}; build them "
        "here with: python -m compress.build_engines --force BUNDLE"
    )


def _same_gpu(built: DeviceInfo, here: DeviceInfo) -> bool:
    if (built.name, built.compute_capability) != (here.name, here.compute_capability):
        return False
    if _apart(built.multiprocessors, here.multiprocessors, share=0):
        return False
    # What the system keeps for itself differs a little from one release to the next.
    return not _apart(built.memory_gib, here.memory_gib, share=0.2)


def _apart(built: Optional[float], here: Optional[float], *, share: float) -> bool:
    """Whether two numbers, where both are known, differ by more than a share of the larger."""
    if built is None or here is None:
        return False
    return abs(built - here) > share * max(built, here)


def _described(gpu: DeviceInfo) -> str:
    told = [gpu.compute_capability]
    if gpu.multiprocessors is not None:
        told.append(f"{gpu.multiprocessors} multiprocessors")
    if gpu.memory_gib is not None:
        told.append(f"{gpu.memory_gib:g} GiB")
    return f"GPU {gpu.name} ({', '.join(told)})"


def _same_version(built: str, here: str) -> bool:
    ours, theirs = built.split("."), here.split(".")
    shared = min(len(ours), len(theirs))
    return ours[:shared] == theirs[:shared] and shared >= 3


def _again(bundle: Path) -> str:
    return f"build the engines again with: python -m compress.build_engines --force {bundle}"


def _check_sources(engines: EngineSet, manifest: Manifest, bundle: Path) -> None:
    """Raise unless the engines were built from the very files of the manifest."""
    again = _again(bundle)
    if len(engines.segments) != len(manifest.segments):
        raise UserInputError(
            f"bundle {bundle} has {len(engines.segments)} engines for {len(manifest.segments)} "
            f"segments; {again}"
        )
    for engine, segment in zip(engines.segments, manifest.segments):
        if engine.onnx_sha256 != segment.sha256:
            raise UserInputError(
                f"engine {engine.file} of bundle {bundle} was built from another file than "
                f"{segment.file} is now; {again}"
            )


def _check_file(bundle: Path, engine: EngineFile) -> None:
    path = bundle / engine.file
    again = _again(bundle)
    if not path.is_file():
        raise UserInputError(f"engine {path} is missing; {again}")
    found = sha256_of(check_readable(path, "engine"))
    if found != engine.sha256:
        raise UserInputError(
            f"engine {path} has sha256 {found[:12]}…, {ENGINES} says {engine.sha256[:12]}…; it was "
            f"altered or belongs to another bundle, so {again}"
        )


def _read_json(path: Path, again: str) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, more than a list of engines has")
    value = json.loads(path.read_text(encoding="utf-8"))  # both errors are ValueErrors
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} in place of an object")
    found = value.get("format")
    if found != FORMAT:
        raise UserInputError(
            f"list of engines {path} has the format {found!r:.60}; this version reads {FORMAT}, so "
            f"{again}"
        )
    return value


def _parse(value: Mapping[str, Any]) -> EngineSet:
    if value["builder"] not in BUILDERS:
        raise ValueError(f"builder {value['builder']!r:.60}")
    if not isinstance(value["segments"], list) or not value["segments"]:
        raise ValueError(f"segments {value['segments']!r:.60}")
    files = tuple(_engine(item) for item in value["segments"])
    if len({engine.file for engine in files}) < len(files):
        raise ValueError("two engines in one file")
    return EngineSet(
        builder=value["builder"],
        tensorrt_version=_matching(VERSION, value["tensorrt_version"]),
        device=_device(value),
        segments=files,
        is_ours=is_marked_here(value),
    )


def _device(value: Mapping[str, Any]) -> Optional[DeviceInfo]:
    capability, name = value["compute_capability"], value["device_name"]
    if (capability is None) != (name is None):
        raise ValueError(f"a GPU of name {name!r:.60} and compute capability {capability!r:.60}")
    if capability is None:
        return None
    memory = value.get("memory_gib")  # of the last three, engines of earlier versions tell none
    if memory is not None and not 0 < number(memory) <= MAX_MEMORY_GIB:
        raise ValueError(f"{memory!r:.60} GiB of memory")
    return DeviceInfo(
        name=_printable(name),
        compute_capability=_matching(CAPABILITY, capability),
        multiprocessors=_count(value.get("multiprocessors")),
        memory_gib=None if memory is None else number(memory),
        clock_mhz=_count(value.get("clock_mhz")),
    )


def _count(value: Any) -> Optional[int]:
    return None if value is None else count(value, smallest=1, largest=1 << 20)


def _engine(value: Mapping[str, Any]) -> EngineFile:
    file = _printable(value["file"])
    if file != Path(file).name or not file.endswith(".engine") or file.startswith("."):
        raise ValueError(f"file {file!r:.60} is not a plain name that ends with .engine")
    return EngineFile(
        file=file,
        sha256=_matching(SHA256, value["sha256"]),
        onnx_sha256=_matching(SHA256, value["onnx_sha256"]),
    )


def _matching(pattern: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{value!r:.60} in an unexpected place")
    return value


def _printable(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 256:
        raise ValueError(f"{value!r:.60} in place of a name")
    return value
