"""Give a bundle its probe: a few of the images that it was compared on, as its files see them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.export.chain import Tensors, run_chain
from compress.export.onnx_file import onnx_session
from compress.runtime.manifest import Manifest
from compress.runtime.probe import Probe, probe_images, results_of, write_probe

__all__ = ["with_probe"]

CANDIDATES = 32  # of which as many exits as can be are chosen


def with_probe(images: NDArray[np.float32], manifest: Manifest, folder: Path) -> Manifest:
    """Write the probe of a bundle whose parity was checked; return the manifest that names it.

    The images are chosen so that every exit is taken, where there are such: of exits 0 0 0 0 1 2 a
    probe of four takes 0 1 2 0. There is no probe where images are too large or results not finite.

    Args:
        images: (N, C, H, W), prepared.
        manifest: of the bundle.
        folder: that its files lie in.
    """
    room = probe_images(manifest)
    if room == 0:
        return manifest
    seen = images[:CANDIDATES]
    results = _results(seen, manifest, folder)
    is_finite = [np.isfinite(a).reshape(len(seen), -1).all(1) for r in results for a in r.values()]
    exits = Probe(seen, results).exits(manifest.thresholds)
    rows = _spread(exits, np.logical_and.reduce(is_finite), room)
    if not len(rows):
        return manifest
    chosen = [{name: array[rows] for name, array in part.items()} for part in results]
    return write_probe(folder, manifest, seen[rows], chosen)


def _results(images: NDArray[np.float32], manifest: Manifest, folder: Path) -> tuple[Tensors, ...]:
    """Return the results of each segment, of all images."""
    sessions = [
        onnx_session(folder / segment.file, half=segment.precision == "fp16")
        for segment in manifest.segments
    ]
    batch = manifest.batch[1]
    runs = [run_chain(sessions, images[i : i + batch]) for i in range(0, len(images), batch)]
    return tuple(
        {
            spec.name: np.concatenate([run[number][1][spec.name] for run in runs])
            for spec in results_of(segment)
        }
        for number, segment in enumerate(manifest.segments)
    )


def _spread(exits: NDArray[np.int64], allowed: NDArray[np.bool_], room: int) -> NDArray[np.int64]:
    """Return rows of at most `room` images, of all exits in turn, ascending."""
    queues = [[row for row in np.flatnonzero(exits == e) if allowed[row]] for e in np.unique(exits)]
    turns = [queue[turn] for turn in range(len(exits)) for queue in queues if turn < len(queue)]
    return np.array(sorted(turns[:room]), dtype=np.int64)
