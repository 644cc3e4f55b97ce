"""Set the thresholds of an exported bundle anew, from what its own files compute."""

from dataclasses import replace
from pathlib import Path

from compress.data.image_data import ImageData, Preprocessing
from compress.data.spec import load_data
from compress.errors import UserInputError
from compress.exits.recalibrate import Recalibration, recalibrated
from compress.export.bundle_replay import reference_rates, replay_bundle
from compress.opened import Opening
from compress.planning.job import replay_of
from compress.runtime import reference_rates as reference
from compress.runtime.manifest import Manifest, read_manifest, write_manifest

__all__ = ["recalibrate_bundle"]

CALIBRATION = "calibration"


def recalibrate_bundle(
    bundle: Path,
    checkpoint: Path,
    data: str | ImageData,
    *,
    opening: Opening | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
    progress: bool = True,
) -> Recalibration:
    """Give a bundle the thresholds that let as many images leave at each exit as in torch.

    The manifest gets the new thresholds, a note of the rates before and after, and the rates that a
    monitor compares a stream with; files and engines stay as they are, as thresholds live outside.

    Args:
        bundle: its folder.
        checkpoint: of the network that is to be matched, with exits behind the same blocks: the
            one that was exported, or the one before slimming.
        data: whose calibration split is run.
        opening: how the checkpoint is opened.
        seed: of the split.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        progress: show bars on stderr.

    Raises:
        UserInputError: the bundle has no exits, or a file cannot be used.
    """
    manifest = read_manifest(bundle)
    if manifest.exits == 0:
        raise UserInputError(
            f"bundle {bundle} has no exits; expected one that was exported with --split-exits"
        )
    images = _images(manifest, data, seed, cache)
    tables = replay_of(checkpoint, images, (CALIBRATION,), opening=opening, progress=progress)
    before = tables[CALIBRATION]
    after = replay_bundle(bundle, images.splits[CALIBRATION], before.source, progress=progress)
    found = recalibrated(before, after, manifest.thresholds)
    rates = reference_rates(after, found.thresholds)
    notes = {
        **manifest.notes,
        "recalibration": found.to_dict(),
        reference.CALIBRATION: rates.to_dict(),
    }
    write_manifest(replace(manifest.with_thresholds(found.thresholds), notes=notes), bundle)
    return found


def _images(
    manifest: Manifest, data: str | ImageData, seed: int, cache: Path | str | None
) -> ImageData:
    """Return the images as the bundle prepares them."""
    if isinstance(data, ImageData):
        return data
    prepared = manifest.preprocessing
    if prepared is None:
        raise UserInputError(
            f"the bundle of {manifest.name} does not say how its images are prepared; export it "
            "from a checkpoint that does"
        )
    wanted = Preprocessing.from_dict(prepared.to_dict())
    return load_data(data, preprocessing=wanted, seed=seed, cache=cache)
