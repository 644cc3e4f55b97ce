"""The probe of a bundle: a few images, and what its exported graphs made of them.

The exporter writes it; on the device it tells how far engines are from the graphs that they were
built from (see compress.runtime.self_test). Nobody leaves here: every segment ran on every image,
so exits follow from the gates by whatever thresholds a bundle has now.

The file is bare numbers, little-endian, whose sizes the manifest tells: the images (N, C, H, W) as
they are after preprocessing, then of each segment its results (N, …), in the manifest's order.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from compress.errors import UserInputError
from compress.files import check_readable, replacing
from compress.runtime.decision import first_exit
from compress.runtime.manifest import Manifest, Segment, TensorSpec
from compress.runtime.probe_file import MAX_PROBE_IMAGES, ProbeFile

__all__ = ["PROBE", "Probe", "probe_images", "read_probe", "results_of", "write_probe"]

PROBE = "probe.bin"
MAX_BYTES = 16 << 20  # eight images of 384 x 384 and what a classifier gives take 14 MiB


@dataclass(frozen=True)
class Probe:
    """A few images and what the exported graphs made of them.

    Attributes:
        images: (N, C, H, W) float32, prepared.
        results: of each segment its results by name, (N, …): logits and gate, of the last segment
            logits or further outputs.
    """

    images: np.ndarray
    results: Tuple[Mapping[str, np.ndarray], ...]

    def exits(self, thresholds: Sequence[float]) -> np.ndarray:
        """Return the exit (N,) where each image leaves, E for the final head."""
        return first_exit(self.gates, thresholds)

    @property
    def gates(self) -> np.ndarray:
        """Return the gates (N, E), float32."""
        gates = [np.asarray(part["gate"]) for part in self.results[:-1]]
        return np.stack(gates, axis=1) if gates else np.empty((len(self.images), 0), np.float32)


def results_of(segment: Segment) -> Tuple[TensorSpec, ...]:
    """Return what the host may read of a segment: what it gives less what crosses."""
    crossing = {spec.name for spec in segment.gives}
    return tuple(spec for spec in segment.outputs if spec.name not in crossing)


def probe_images(manifest: Manifest) -> int:
    """Return how many images a probe of this bundle may have; 0 where one alone is too large."""
    return min(MAX_PROBE_IMAGES, MAX_BYTES // _image_bytes(manifest))


def write_probe(
    bundle: Path,
    manifest: Manifest,
    images: np.ndarray,
    results: Sequence[Mapping[str, np.ndarray]],
) -> Manifest:
    """Write the probe of a bundle; return the manifest that names it, which is yet to be written.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        images: (N, C, H, W) float32, prepared; at most `probe_images` of them.
        results: of each segment, by name, (N, …).

    Raises:
        ValueError: these are too many images, or results of other shapes.
    """
    if not 1 <= len(images) <= probe_images(manifest):
        raise ValueError(f"a probe of {len(images)} images, at most {probe_images(manifest)}")
    given: List[np.ndarray] = [images]
    for segment, part in zip(manifest.segments, results):
        given += [part[spec.name] for spec in results_of(segment)]
    content = b"".join(
        np.ascontiguousarray(array, dtype=_dtype(spec)).reshape(len(images), *spec.shape).tobytes()
        for spec, array in zip(_layout(manifest), given)
    )
    with replacing(Path(bundle) / PROBE) as part_file:
        part_file.write_bytes(content)
    named = ProbeFile(PROBE, hashlib.sha256(content).hexdigest(), len(images))
    return replace(manifest, probe=named)


def read_probe(bundle: Path, manifest: Manifest) -> Probe:
    """Read the probe of a bundle.

    Raises:
        UserInputError: it has none, or one that is missing, altered, or of another size than its
            images take.
    """
    if manifest.probe is None:
        raise UserInputError(
            f"bundle {bundle} carries no probe, images with what its graphs made of them; export "
            "it again with python -m compress.export_trt"
        )
    content = _content(Path(bundle), manifest, manifest.probe)
    arrays = list(_arrays(content, manifest, manifest.probe.images))
    if not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
        raise _unusable(bundle, "it holds numbers that are not finite")
    rest = iter(arrays[1:])
    results: List[Dict[str, np.ndarray]] = [
        {spec.name: next(rest) for spec in results_of(segment)} for segment in manifest.segments
    ]
    return Probe(arrays[0], tuple(results))


def _content(bundle: Path, manifest: Manifest, named: ProbeFile) -> bytes:
    path = check_readable(bundle / named.file, "probe")
    size, expected = path.stat().st_size, named.images * _image_bytes(manifest)
    if size != expected or size > MAX_BYTES:
        raise _unusable(bundle, f"it has {size} bytes, its images take {expected}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != named.sha256:
        raise _unusable(bundle, f"its sha256 is {found[:12]}…, not {named.sha256[:12]}…")
    return content


def _arrays(content: bytes, manifest: Manifest, images: int) -> Iterator[np.ndarray]:
    offset = 0
    for spec in _layout(manifest):
        count = images * (spec.image_bytes // _dtype(spec).itemsize)
        array = np.frombuffer(content, _dtype(spec), count, offset)
        offset += count * _dtype(spec).itemsize
        yield array.reshape(images, *spec.shape)


def _layout(manifest: Manifest) -> List[TensorSpec]:
    specs = [manifest.image]
    for segment in manifest.segments:
        specs += results_of(segment)
    return specs


def _image_bytes(manifest: Manifest) -> int:
    return sum(spec.image_bytes for spec in _layout(manifest))


def _dtype(spec: TensorSpec) -> np.dtype:
    return np.dtype(spec.dtype).newbyteorder("<")


def _unusable(bundle: Path, why: str) -> UserInputError:
    return UserInputError(
        f"the probe of bundle {bundle} cannot be used ({why}); it was altered or belongs to "
        "another bundle, so copy or export the bundle again"
    )
