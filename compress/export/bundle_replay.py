"""The replay table of a bundle: every segment on every image, nobody leaves early.

What a bundle gives differs from what its checkpoint gave by its precision, so thresholds that were
chosen on the checkpoint are checked, and set anew, on this table. It is filled through the backend
that dispatches the bundle, so its gates are the very numbers that the dispatcher compares.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data.image_data import Split
from compress.errors import CompressError, UserInputError
from compress.exits.replay import ReplayTable, Source, decide
from compress.progress import progress_bar
from compress.runtime.backend import Backend
from compress.runtime.backends import open_backend
from compress.runtime.exit_spelling import Position, check_order, spelled
from compress.runtime.manifest import Manifest, read_manifest
from compress.runtime.preprocessing import Preprocessing
from compress.runtime.reference_rates import ReferenceRates

__all__ = ["CHECK_MACS", "DEPTH", "reference_rates", "replay_bundle"]

# Notes of the manifest: multiply-adds of head and gate of every exit; blocks of the network, where
# its exits are told by them.
CHECK_MACS = "check_macs"
DEPTH = "depth"


def replay_bundle(
    bundle: Path,
    split: Split,
    source: Source,
    *,
    backend: str = "onnxruntime",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> ReplayTable:
    """Run all segments of a bundle on all images of a split, once.

    A bundle of one segment gives a table without exits, which tells its accuracy and nothing else.

    Args:
        bundle: its folder.
        split: at least one image, of the size that the bundle takes; normalised as its manifest
            says.
        source: what is run on what.
        backend: as of the dispatcher.
        batch_size: images at a time, among those that the bundle takes; None takes the most. 1
            gives the very scores of image by image.
        threads: of ONNX Runtime on the CPU; None leaves it to ONNX Runtime.
        progress: show a bar on stderr.

    Raises:
        UserInputError: the bundle, the split or the batch size cannot be used, or the manifest does
            not tell the multiply-adds of its exits.
        ToolchainError: the backend is missing, or cannot run the bundle.
        CompressError: the final head gives NaN or infinity.
    """
    manifest = read_manifest(Path(bundle))
    size = manifest.batch[1] if batch_size is None else batch_size
    preprocessing = _check(manifest, split, source, size)
    check_macs, depth = _check_macs(manifest), _depth(manifest)
    runner = open_backend(backend, Path(bundle), manifest, threads=threads)
    try:
        parts, total = [], -(-len(split) // size)
        with progress_bar(total, "replay of the bundle", unit="batch", show=progress) as bar:
            for images, said in split.batches(size):
                inputs = preprocessing.normalize_array(images.numpy())
                parts.append((*_all_exits(runner, manifest, inputs), said.numpy()))
                bar.update()
    finally:
        runner.close()
    logits, scores, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    _check_final(logits[:, -1], bundle)
    return ReplayTable(
        logits=logits,
        scores=scores,
        labels=labels,
        positions=_positions(manifest),
        depth=depth,
        macs=np.array(list(accumulate(s.macs for s in manifest.segments)), dtype=np.int64),
        check_macs=np.array(check_macs, dtype=np.int64),
        source=source,
    )


def _all_exits(
    runner: Backend, manifest: Manifest, inputs: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits (B, E+1, K) and gates (B, E) of a batch."""
    logits = np.empty((len(inputs), manifest.exits + 1, len(manifest.classes)), dtype=np.float32)
    gates = np.empty((len(inputs), manifest.exits), dtype=np.float32)
    runner.load(inputs)
    for i in range(manifest.exits + 1):
        gate = runner.run(i)
        logits[:, i] = runner.logits()
        if gate is not None:
            gates[:, i] = gate
    return logits, gates


def _positions(manifest: Manifest) -> tuple[Position, ...]:
    """Return where each exit stands, as people spell it."""
    return tuple(spelled(segment.at) for segment in manifest.segments if segment.at is not None)


def _check(manifest: Manifest, split: Split, source: Source, size: int) -> Preprocessing:
    """Return the preprocessing, after everything that can be known before an image is run."""
    smallest, largest = manifest.batch
    if not smallest <= size <= largest:
        raise UserInputError(
            f"--batch-size is {size}; this bundle takes from {smallest} to {largest} images"
        )
    if len(split) == 0:
        raise UserInputError(
            f"the {source.split} split of {source.data} is empty; expected at least one image"
        )
    if manifest.preprocessing is None:
        raise UserInputError(
            f"the bundle of {manifest.name} does not say how its images are prepared; export it "
            "from a checkpoint that does"
        )
    _check_fit(manifest, split, source)
    return manifest.preprocessing


def _check_fit(manifest: Manifest, split: Split, source: Source) -> None:
    given, wanted = (
        "x".join(map(str, shape)) for shape in (split.source.shape, manifest.image.shape)
    )
    if given != wanted:
        raise UserInputError(
            f"the images of {source.data} are {given}, but {manifest.name} takes {wanted}; load "
            "the data at that size"
        )
    classes = len(manifest.classes)
    if int(split.labels.max()) >= classes:
        raise UserInputError(
            f"{source.data} has labels up to {int(split.labels.max())}, but {manifest.name} has "
            f"{classes} classes; expected the data that it was trained for"
        )


def _check_macs(manifest: Manifest) -> list[int]:
    """Return the multiply-adds of head and gate of every exit, from the notes."""
    found: Any = manifest.notes.get(CHECK_MACS, [] if not manifest.exits else None)
    if isinstance(found, list) and len(found) == manifest.exits and all(map(_is_count, found)):
        return found
    raise UserInputError(
        f"the manifest of {manifest.name} gives {CHECK_MACS} as {found!r:.60}; expected one whole "
        f"number for each of {manifest.exits} exits, so export the bundle again"
    )


def _depth(manifest: Manifest) -> int:
    """Return the blocks of the network, from the notes; 0 where it is not counted in blocks."""
    found: Any = manifest.notes.get(DEPTH, 0)
    if _is_count(found):
        with suppress(ValueError):
            check_order(_positions(manifest), found)
            return int(found)
    raise UserInputError(
        f"the manifest of {manifest.name} gives {DEPTH} as {found!r:.60}; expected how many blocks "
        "the network has, with its exits among them, so export the bundle again"
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_final(logits: NDArray[np.float32], bundle: Path) -> None:
    """An early exit whose gate is not a number never fires, but nothing stands behind the last."""
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise CompressError(
            f"bundle {bundle} gives NaN or infinity for {broken} of {len(logits)} images; half "
            "precision may have overflowed, so export it as fp32 or check the network's weights"
        )


def reference_rates(table: ReplayTable, thresholds: Sequence[float]) -> ReferenceRates:
    """Return where the images of a table leave, and how sure they are there."""
    exits = decide(table, thresholds)
    logits = table.logits[np.arange(len(table)), exits].astype(np.float64)  # (N, K)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return ReferenceRates.measured(exits, confidence, thresholds)
